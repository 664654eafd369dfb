"""The one core of the losses: what a soft-target cross entropy over a batch of pairs needs to know of its logits.

With logits ``z = s x y^T`` and a teacher's targets ``M`` (rows sum to 1) and ``M'`` (columns sum to 1) it finds five vectors:

    row_lse_i = log sum_j exp z_ij      column_lse_j = log sum_i exp z_ij      pair_i = z_ii
    row_dot_i = sum_j M_ij z_ij         column_dot_j = sum_i M'_ij z_ij

and from them two losses of every pair (`contract.pair_losses`): the cross entropy of its given target,
``(row_lse + column_lse) / 2 - pair``, which label smoothing shares out, and that of its soft targets,
``(row_lse + column_lse - row_dot - column_dot) / 2``. What a loss makes of these two, weights per pair or parts reported apart,
is autograd's. The gradient with respect to the logits is

    G_ij = a_i softmax_row(z)_ij + a_j softmax_column(z)_ij + c_i delta_ij + d_i M_ij + d_j M'_ij + f_i

with the weights of `contract.Weights`; then ``dx = s G y``, ``dy = s G^T x`` and ``ds = <x, G y>``. Nothing flows to the teacher.

The N x N matrices are kept from forward to backward where two of them fit `max_memory`, and recomputed in row blocks where
they do not. Where the spread of the logits allows it, one exponential serves both softmaxes.
"""

from typing import Any, NoReturn, Sequence  # noqa: UP035  torch 2.6 reads no other in an operator's signature

import torch
from torch import Tensor

from otter_losses.ops import dispatch
from otter_losses.ops.contract import Given, Storage, Teacher, Weights, pair_losses, storage_of, wanted
from otter_losses.ops.domains import safe_range
from otter_losses.ops.plain import soft_target as plain
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.world import World


@torch.library.custom_op("otter_losses::soft_target", mutates_args=())
def soft_target(
    x: Tensor,
    y: Tensor,
    texts: Tensor | None,
    scale: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
    spread: float | None,
    iterations: int,
    entropy: bool,
    own: float,
    share: float,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`pair_losses` (2, b) of student features x, y (b, D) of one dtype and a 0-D scale of `computing` dtype.

    Of several ranks, the process group called `group`, each brings so many of the `counts` pairs, and has the `texts` (N, D) of
    all beside them; alone b is N. The gradient of y is then summed over the ranks before it is rounded to their dtype.
    A teacher is asked for by its `sharpness`, 0-D, and has features v, t (N, E), or the student's own where they are None; its
    other arguments are those of `Similarity`, `Kernel.build` and `solve`. Without it there are no soft targets, and a loss of 0
    in their place. `own` and `share` are those of `Given`. Behind the losses stands what the backward needs: the statistics
    (7, N); the teacher's scalings (4, N), of image and text rows and image and text columns; its kernel and the student's cosines
    or exponentials, (b, N), empty where they are recomputed; and a state (4,), which the backend that wrote it understands.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        world = World(group, tuple(counts))
        y = y if texts is None else texts
        similarity = _similarity(x, y, v, t, sharpness, gamma_image, gamma_text, diagonal_penalty, world)
        teacher = None if similarity is None else Teacher(similarity, spread, iterations, entropy)
        given = Given(own, share)
        storage = _storage(x, len(y), sharpness, diagonal_penalty, spread, max_memory, backend)
        with dispatch.advice_on_memory(max_memory, x.device):
            if dispatch.fuses(backend, x, len(y)):
                from otter_losses.ops.triton import soft_target as fused

                saved = fused.forward(x, y, scale, teacher, storage, backend, world)
            else:
                saved = plain.forward(x, y, scale, teacher, storage, world)
        return pair_losses(saved[0], given, x, y, scale, teacher, world), *saved


def _similarity(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
    world: World,
) -> Similarity | None:
    """Of the teacher's features, those given or the student's own, where a teacher is asked for."""
    if sharpness is None:
        return None
    v, t = x if v is None else v, y if t is None else t
    return Similarity(v, t, sharpness, gamma_image, gamma_text, diagonal_penalty, world.own(len(x)))


def _storage(
    x: Tensor, n: int, sharpness: Tensor | None, diagonal_penalty: float, spread: float | None, max_memory: int, backend: str
) -> Storage:
    # Codes have no room for a diagonal that is lowered but stays.
    codes = diagonal_penalty in (0.0, float("inf")) and spread is not None and spread <= safe_range(torch.float32)
    return storage_of(x, n, sharpness is not None, codes, dispatch.room(max_memory, x.device), dispatch.fuses(backend, x, n))


@soft_target.register_fake
def _(
    x: Tensor,
    y: Tensor,
    texts: Tensor | None,
    scale: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
    spread: float | None,
    iterations: int,
    entropy: bool,
    own: float,
    share: float,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, n = x.shape[0], (y if texts is None else texts).shape[0]
    storage = _storage(x, n, sharpness, diagonal_penalty, spread, max_memory, backend)
    kernel = scale.new_empty(0) if storage.kernel is None else scale.new_empty(b, n, dtype=storage.kernel)
    cosines = scale.new_empty(b, n) if storage.cosines else scale.new_empty(0)
    return scale.new_empty(2, b), scale.new_empty(7, n), scale.new_empty(4, n), kernel, cosines, scale.new_empty(4)


@torch.library.custom_op("otter_losses::soft_target_backward", mutates_args=())
def soft_target_backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    statistics: Tensor,
    scalings: Tensor,
    stored: Tensor,
    cosines: Tensor,
    state: Tensor,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
    spread: float | None,
    own: float,
    share: float,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the same rows of y, which are those of all ranks here, and of the scale, for that (2, b) of the losses.

    Either product is left out, and its gradient empty, where it is not wanted; the scale's gradient needs one of them.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        world = World(group, tuple(counts))
        similarity = _similarity(x, y, v, t, sharpness, gamma_image, gamma_text, diagonal_penalty, world)
        teacher = None if similarity is None else Teacher(similarity, spread)
        saved = statistics, scalings, stored, cosines, state
        weights = Weights.of(gradient, Given(own, share), world)
        with dispatch.advice_on_memory(max_memory, x.device):
            if dispatch.fuses(backend, x, len(y)):
                from otter_losses.ops.triton import soft_target as fused

                return fused.backward(weights, x, y, scale, teacher, saved, wants_dx, wants_dy, world)
            return plain.backward(weights, x, y, scale, teacher, saved, wants_dx, wants_dy, world)


@soft_target_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    statistics: Tensor,
    scalings: Tensor,
    stored: Tensor,
    cosines: Tensor,
    state: Tensor,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
    spread: float | None,
    own: float,
    share: float,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return wanted(x, wants_dx), wanted(x, wants_dy), scale.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, texts = inputs[:3]
    ctx.save_for_backward(x, y if texts is None else texts, *inputs[3:7], *output[1:])
    ctx.options = (*inputs[7:11], *inputs[13:])
    ctx.set_materialize_grads(False)


def wanted_gradients(ctx: Any) -> tuple[bool, bool]:
    """Whether x and y get one; the scale's comes with either."""
    wants_x, wants_y = ctx.needs_input_grad[:2]
    return wants_x or not wants_y, wants_y


def _backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 19
    wants_dx, wants_dy = wanted_gradients(ctx)
    dx, dy, dscale = soft_target_backward(gradient, *ctx.saved_tensors, *ctx.options, wants_dx, wants_dy)
    return (dx if wants_dx else None, dy if wants_dy else None, None, dscale) + (None,) * 15


def refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "otter_losses has no second derivatives: its gradients are analytic, and differentiating them again was asked for. "
        "Call backward without create_graph, or use the functions of otter_losses.ops.reference, which autograd differentiates."
    )


soft_target.register_autograd(_backward, setup_context=_save)
soft_target_backward.register_autograd(refuse_second_derivative)
