"""The one core of the losses: what a soft-target cross entropy over a batch of pairs needs to know of its logits.

With logits ``z = s x y^T`` and a teacher's targets ``M`` (rows sum to 1) and ``M'`` (columns sum to 1) it gives five vectors:

    row_lse_i = log sum_j exp z_ij      column_lse_j = log sum_i exp z_ij      pair_i = z_ii
    row_dot_i = sum_j M_ij z_ij         column_dot_j = sum_i M'_ij z_ij

Every loss here is a weighted sum of them: InfoNCE is ``mean(row_lse + column_lse - 2 pair) / 2``. So weights per pair, parts
reported apart and label smoothing need no code down here, and their gradients come out right by themselves. The gradient
with respect to the logits is

    G_ij = a_i softmax_row(z)_ij + b_j softmax_column(z)_ij + c_i delta_ij + d_i M_ij + e_j M'_ij

for incoming gradients ``a .. e``; then ``dx = s G y``, ``dy = s G^T x`` and ``ds = <x, G y>``. Nothing flows to the teacher.

The N x N matrices are kept from forward to backward where two of them fit `max_memory`, and recomputed in row blocks where
they do not. Where the spread of the logits allows it, one exponential serves both softmaxes.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, reads_freely, safe_range
from otter_losses.ops.similarity import Similarity, row_chunks
from otter_losses.ops.transport import Kernel, solve

ROW_LSE, COLUMN_LSE, PAIR, ROW_DOT, COLUMN_DOT, ROW_ENTROPY, COLUMN_ENTROPY = range(7)
"""Rows of the statistics. The entropies are the targets' own (constants that turn a cross entropy into a divergence)."""


def stores(pairs: int, matrices: int, itemsize: int, max_memory: int) -> bool:
    """Whether that many N x N matrices are kept rather than recomputed."""
    return matrices * pairs * pairs * itemsize <= max_memory


@torch.library.custom_op("otter_losses::soft_target", mutates_args=())
def soft_target(
    x: Tensor,
    y: Tensor,
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
    max_memory: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The statistics, (7, N), of student features x, y (N, D) and a 0-D scale, all of one dtype.

    A teacher is asked for by its `sharpness`, 0-D, and has features v, t (N, E), or the student's own where they are None; its
    other arguments are those of `Similarity`, `Kernel.build` and `solve`. Without it only the first three rows mean anything.
    Behind the statistics stands what the backward needs: the teacher's scalings (4, N), its kernel (N, N), the student's
    cosines or exponentials (N, N), both empty where they are recomputed, and a state (4,): the shifts of both matrices, and 1
    where the kernel is held as logarithms and where the student's matrix holds exponentials.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        dense = stores(n, 1 if sharpness is None else 2, x.element_size(), max_memory)
        statistics, scalings = x.new_zeros(7, n), x.new_zeros(4, n)
        statistics[COLUMN_LSE] = -torch.inf
        cosines = x @ y.T if dense and v is None else None
        similarity = _similarity(x, y, v, t, sharpness, gamma_image, gamma_text, diagonal_penalty)
        teacher = None
        if similarity is not None:
            teacher = Kernel.build(similarity, spread, store=dense, cross=cosines, fused=fused)
            scalings[1], scalings[2], scalings[3] = solve(teacher, iterations)
        if dense and cosines is None:
            cosines = x @ y.T

        shift = None if fused else _common_shift(x, y, scale, cosines)
        chunks = row_chunks(n, n, x.device)
        # Fresh memory costs a page fault per 4 KiB, more than the arithmetic on it: row blocks share theirs.
        logits = x.new_empty(chunks[0].stop if cosines is None or not fused else 0, n)
        scratch = x.new_empty(0 if fused else chunks[0].stop, n)
        for rows in chunks:
            z = logits[: rows.stop - rows.start]
            kernel = None
            if teacher is not None:
                kernel = teacher.block(rows)
                one = teacher.domain.enter(torch.ones_like(scalings[0, rows]))
                scalings[0, rows] = teacher.domain.match(one, teacher.domain.row_sums(kernel, scalings[1]))
            if fused:
                from otter_losses.ops.fused import passes

                block = cosines[rows] if cosines is not None else torch.mm(x[rows], y.T, out=z)
                logarithmic = teacher is not None and teacher.domain is LOGARITHMIC
                passes.statistics(block, scale, kernel, scalings, statistics, rows, entropy, logarithmic)
                continue
            if cosines is None:
                torch.mm(x[rows], y.T, out=z).mul_(scale)
            else:
                torch.mul(cosines[rows], scale, out=z)
            statistics[PAIR, rows] = z.diagonal(rows.start)
            if teacher is not None and kernel is not None:
                _expected_logits(teacher.domain, kernel, rows, z, scalings, statistics, entropy, scratch[: len(z)])
            if shift is None or cosines is None:
                statistics[ROW_LSE, rows] = z.logsumexp(1)
                partial = z.logsumexp(0)
            else:
                exponentials = torch.exp(z.sub_(shift), out=cosines[rows])
                statistics[ROW_LSE, rows] = exponentials.sum(1).log_().add_(shift)
                partial = exponentials.sum(0).log_().add_(shift)
            statistics[COLUMN_LSE] = torch.logaddexp(statistics[COLUMN_LSE], partial)

        state, nothing = x.new_zeros(4), x.new_empty(0)
        if teacher is not None:
            state[0], state[2] = teacher.shift, float(teacher.domain is LOGARITHMIC)
        if shift is not None:
            state[1], state[3] = shift, 1.0
        kernel = nothing if teacher is None or teacher.stored is None else teacher.stored
        return statistics, scalings, kernel, nothing.clone() if cosines is None else cosines, state


def _similarity(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    t: Tensor | None,
    sharpness: Tensor | None,
    gamma_image: float,
    gamma_text: float,
    diagonal_penalty: float,
) -> Similarity | None:
    if sharpness is None:
        return None
    return Similarity(x if v is None else v, y if t is None else t, sharpness, gamma_image, gamma_text, diagonal_penalty)


def _common_shift(x: Tensor, y: Tensor, scale: Tensor, cosines: Tensor | None) -> float | None:
    """An upper bound or the maximum, where one exponential about it serves rows and columns; only the CPU may look."""
    if cosines is None or not reads_freely(x):
        return None
    bound = abs(float(scale) * float(torch.linalg.vector_norm(x, dim=1).amax() * torch.linalg.vector_norm(y, dim=1).amax()))
    if 2 * bound <= safe_range(x.dtype):
        return bound
    low, high = (float(bound) for bound in torch.aminmax(cosines))
    low, high = sorted((low * float(scale), high * float(scale)))
    return high if high - low <= safe_range(x.dtype) else None


def _expected_logits(
    domain: Domain, kernel: Tensor, rows: slice, z: Tensor, scalings: Tensor, statistics: Tensor, entropy: bool, scratch: Tensor
) -> None:
    """Add up the logits, and the entropies, under both plans."""
    image_rows, image_columns, text_rows, text_columns = scalings
    if domain is SCALING and not entropy:
        weighted = torch.mul(kernel, z, out=scratch)
        statistics[ROW_DOT, rows] = image_rows[rows] * (weighted @ image_columns)
        statistics[COLUMN_DOT] += (text_rows[rows] @ weighted) * text_columns
        return
    for dot, total, row_scaling, column_scaling, dim in (
        (ROW_DOT, ROW_ENTROPY, image_rows, image_columns, 1),
        (COLUMN_DOT, COLUMN_ENTROPY, text_rows, text_columns, 0),
    ):
        plan = domain.plan(kernel, row_scaling[rows], column_scaling)
        where = rows if dim == 1 else slice(None)
        if entropy:
            statistics[total, where] += torch.special.entr(plan).sum(dim)
        statistics[dot, where] += plan.mul_(z).sum(dim)


@soft_target.register_fake
def _(
    x: Tensor,
    y: Tensor,
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
    max_memory: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[0]
    dense = stores(n, 1 if sharpness is None else 2, x.element_size(), max_memory)
    matrix = x.new_empty(n, n) if dense else x.new_empty(0)
    kernel = x.new_empty(0) if sharpness is None else torch.empty_like(matrix)
    return x.new_empty(7, n), x.new_empty(4, n), kernel, matrix, x.new_empty(4)


def wanted(like: Tensor, wants: bool) -> Tensor:
    """Room for a gradient, or an empty stand-in."""
    return torch.empty_like(like) if wants else like.new_empty(0)


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
    fused: bool,
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y and the scale for the gradient (7, N) of the statistics, row block by row block.

    Either product is left out, and its gradient empty, where it is not wanted; the scale's gradient needs one of them.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        if reads_freely(x):
            logarithmic, exponentials = bool(state[2]), bool(state[3])
        else:
            logarithmic, exponentials = spread is None or spread > safe_range(x.dtype), False
        similarity = _similarity(x, y, v, t, sharpness, gamma_image, gamma_text, diagonal_penalty)
        teacher = None
        if similarity is not None:
            teacher = Kernel(similarity, LOGARITHMIC if logarithmic else SCALING, state[0], stored if stored.numel() else None)
        # Weights below reach e^80 times the gradient, which a loss scaled for half precision would carry out of range.
        magnitude = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = (gradient / magnitude).contiguous()
        row_weight, column_weight = gradient[ROW_LSE], gradient[COLUMN_LSE]
        if exponentials:
            row_weight = row_weight * (state[1] - statistics[ROW_LSE]).exp()
            column_weight = column_weight * (state[1] - statistics[COLUMN_LSE]).exp()

        dx, dy = wanted(x, wants_dx), wanted(y, wants_dy)
        chunks = row_chunks(n, n, x.device)
        space, scratch = x.new_empty(chunks[0].stop, n), x.new_empty(0 if fused else chunks[0].stop, n)
        for rows in chunks:
            g = space[: rows.stop - rows.start]
            kernel = None if teacher is None else teacher.block(rows)
            if fused:
                from otter_losses.ops.fused import passes

                block = cosines[rows] if cosines.numel() else torch.mm(x[rows], y.T, out=g)
                passes.logits_gradient(block, scale, kernel, scalings, statistics, gradient, rows, logarithmic, g)
            else:
                if exponentials:
                    torch.add(row_weight[rows, None], column_weight, out=g).mul_(cosines[rows])
                else:
                    z = cosines[rows] * scale if cosines.numel() else (x[rows] @ y.T).mul_(scale)
                    torch.sub(z, statistics[ROW_LSE, rows, None], out=g).exp_().mul_(row_weight[rows, None])
                    g.add_((z - statistics[COLUMN_LSE]).exp_().mul_(column_weight))
                if teacher is not None and kernel is not None:
                    _add_plans(g, teacher.domain, kernel, rows, scalings, gradient, scratch[: len(g)])
                g.diagonal(rows.start).add_(gradient[PAIR, rows])
            if wants_dx:
                torch.mm(g, y, out=dx[rows])
            if wants_dy:
                dy.addmm_(g.T, x[rows], beta=min(rows.start, 1))  # the first block overwrites
        dscale = ((x * dx) if wants_dx else (y * dy)).sum() * magnitude
        scale = scale * magnitude
        return dx.mul_(scale), dy.mul_(scale), dscale


def _add_plans(
    g: Tensor, domain: Domain, kernel: Tensor, rows: slice, scalings: Tensor, gradient: Tensor, scratch: Tensor
) -> None:
    image_rows, image_columns, text_rows, text_columns = scalings
    if domain is SCALING:
        # Kernel times row scaling first: row times column scaling of a removed entry can overflow.
        torch.mul(kernel, (gradient[ROW_DOT, rows] * image_rows[rows]).unsqueeze(1), out=scratch)
        g.addcmul_(scratch, image_columns)
        torch.mul(kernel, text_rows[rows].unsqueeze(1), out=scratch)
        g.addcmul_(scratch, gradient[COLUMN_DOT] * text_columns)
    else:
        g.add_(domain.plan(kernel, image_rows[rows], image_columns).mul_(gradient[ROW_DOT, rows, None]))
        g.add_(domain.plan(kernel, text_rows[rows], text_columns).mul_(gradient[COLUMN_DOT]))


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
    fused: bool,
    wants_dx: bool,
    wants_dy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return wanted(x, wants_dx), wanted(y, wants_dy), x.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.options = (*inputs[6:10], inputs[13])
    ctx.set_materialize_grads(False)


def wanted_gradients(ctx: Any) -> tuple[bool, bool]:
    """Whether x and y get one; the scale's comes with either."""
    wants_x, wants_y = ctx.needs_input_grad[:2]
    return wants_x or not wants_y, wants_y


def _backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 14
    wants_dx, wants_dy = wanted_gradients(ctx)
    dx, dy, dscale = soft_target_backward(gradient, *ctx.saved_tensors, *ctx.options, wants_dx, wants_dy)
    return (dx if wants_dx else None, dy if wants_dy else None, dscale) + (None,) * 11


def refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "otter_losses has no second derivatives: its gradients are analytic, and differentiating them again was asked for. "
        "Call backward without create_graph, or use the functions of otter_losses.ops.reference, which autograd differentiates."
    )


soft_target.register_autograd(_backward, setup_context=_save)
soft_target_backward.register_autograd(refuse_second_derivative)
