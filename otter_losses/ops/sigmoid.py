"""The core of the sigmoid loss: the summed loss of every row of questions, N a batch.

    row_loss_i = sum_j -log sigmoid(l_ij z_ij),   z = s x y^T + b,   l_ii = 1 and l_ij = -1

For an incoming gradient ``a`` the gradient of the logits is ``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)``; then ``dx = s G y``,
``dy = s G^T x``, ``ds = <x, G y>``, ``db = sum G``.
"""

from typing import Any, Sequence  # noqa: UP035  torch 2.6 reads no other in an operator's signature

import torch
from torch import Tensor

from otter_losses.ops import dispatch
from otter_losses.ops.contract import storage_of, wanted
from otter_losses.ops.plain import sigmoid as plain
from otter_losses.ops.soft_target import refuse_second_derivative, wanted_gradients
from otter_losses.ops.world import World


def _keeps(x: Tensor, n: int, max_memory: int, backend: str) -> bool:
    return storage_of(x, n, False, False, dispatch.room(max_memory, x.device), dispatch.fuses(backend, x, n)).cosines


@torch.library.custom_op("otter_losses::sigmoid", mutates_args=())
def sigmoid(
    x: Tensor,
    y: Tensor,
    texts: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Row losses (b,) of features x, y (b, D), 0-D scale and bias; and what the backward needs, (b, N), empty if not kept.

    `texts`, `group` and `counts` as in `soft_target`.
    """
    world = World(group, tuple(counts))
    y = y if texts is None else texts
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), dispatch.advice_on_memory(max_memory, x.device):
        keep = _keeps(x, len(y), max_memory, backend)
        if dispatch.fuses(backend, x, len(y)):
            from otter_losses.ops.triton import sigmoid as fused

            return fused.forward(x, y, scale, bias, keep, world)
        return plain.forward(x, y, scale, bias, keep, world)


@sigmoid.register_fake
def _(
    x: Tensor,
    y: Tensor,
    texts: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    b, n = x.shape[0], (y if texts is None else texts).shape[0]
    return scale.new_empty(b), scale.new_empty(b, n) if _keeps(x, n, max_memory, backend) else scale.new_empty(0)


@torch.library.custom_op("otter_losses::sigmoid_backward", mutates_args=())
def sigmoid_backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    kept: Tensor,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, scale and bias for the gradient (N,) of the row losses; see `soft_target_backward`."""
    world = World(group, tuple(counts))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), dispatch.advice_on_memory(max_memory, x.device):
        if dispatch.fuses(backend, x, len(y)):
            from otter_losses.ops.triton import sigmoid as fused

            return fused.backward(gradient, x, y, scale, bias, kept, wants_dx, wants_dy, world)
        return plain.backward(gradient, x, y, scale, bias, kept, wants_dx, wants_dy, world)


@sigmoid_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    kept: Tensor,
    max_memory: int,
    backend: str,
    group: str,
    counts: Sequence[int],
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return wanted(x, wants_dx), wanted(x, wants_dy), scale.new_empty(()), scale.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, texts = inputs[:3]
    ctx.save_for_backward(x, y if texts is None else texts, *inputs[3:5], output[1])
    ctx.options = inputs[5:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 9
    wants_dx, wants_dy = wanted_gradients(ctx)
    dx, dy, dscale, dbias = sigmoid_backward(gradient, *ctx.saved_tensors, *ctx.options, wants_dx, wants_dy)
    return dx if wants_dx else None, dy if wants_dy else None, None, dscale, dbias, None, None, None, None


sigmoid.register_autograd(_backward, setup_context=_save)
sigmoid_backward.register_autograd(refuse_second_derivative)
