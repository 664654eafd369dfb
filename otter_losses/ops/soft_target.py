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

from otter_losses.ops.domains import LOGARITHMIC, SCALING, safe_range
from otter_losses.ops.transport import TeacherMatrix, row_chunks, solve

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
    a: Tensor | None,
    b: Tensor | None,
    spread: float | None,
    diagonal_penalty: float,
    iterations: int,
    entropy: bool,
    max_memory: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The statistics, (7, N), of student features x, y (N, D) and a 0-D scale, all of one dtype.

    The teacher comes as its factors a, b (N, E), see `transport`, or not at all: then only the first three rows mean anything.
    Behind the statistics stands what the backward needs: the teacher's scalings (4, N), its kernel and the student's logits or
    exponentials (N, N; empty where they are recomputed), and a state (4,): the shifts of both matrices, and 1 where the kernel
    is held as logarithms and where the student's matrix holds exponentials.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        dense = stores(n, 1 if a is None else 2, x.element_size(), max_memory)
        statistics, scalings = x.new_zeros(7, n), x.new_zeros(4, n)
        statistics[COLUMN_LSE] = -torch.inf
        teacher = None
        if a is not None and b is not None:
            teacher = TeacherMatrix.build(a, b, diagonal_penalty, spread, store=dense)
            scalings[1], scalings[2], scalings[3] = solve(teacher, iterations)

        xs = x * scale
        logits = xs @ y.T if dense else None
        shift = _common_shift(logits)
        for rows in row_chunks(n, n):
            z = xs[rows] @ y.T if logits is None else logits[rows]
            statistics[PAIR, rows] = z.diagonal(rows.start)
            if teacher is not None:
                _expected_logits(teacher, rows, z, scalings, statistics, entropy)
            if shift is None:
                statistics[ROW_LSE, rows] = z.logsumexp(1)
                statistics[COLUMN_LSE] = torch.logaddexp(statistics[COLUMN_LSE], z.logsumexp(0))
            else:
                z.sub_(shift).exp_()
                statistics[ROW_LSE, rows] = z.sum(1).log_().add_(shift)
                partial = z.sum(0).log_().add_(shift)
                statistics[COLUMN_LSE] = torch.logaddexp(statistics[COLUMN_LSE], partial)

        empty = x.new_empty(0)
        state = x.new_zeros(4)
        kernel = empty
        if teacher is not None:
            kernel = empty if teacher.stored is None else teacher.stored
            state[0], state[2] = teacher.shift, float(teacher.domain is LOGARITHMIC)
        if shift is not None:
            state[1], state[3] = shift, 1.0
        return statistics, scalings, kernel, empty.clone() if logits is None else logits, state


def _common_shift(logits: Tensor | None) -> float | None:
    """The maximum, where one exponential about it serves rows and columns; only the CPU may look."""
    if logits is None or logits.device.type != "cpu":
        return None
    low, high = (float(bound) for bound in torch.aminmax(logits))
    return high if high - low <= safe_range(logits.dtype) else None


def _expected_logits(teacher: TeacherMatrix, rows: slice, z: Tensor, scalings: Tensor, statistics: Tensor, entropy: bool) -> None:
    """Finish the image problem's row scalings, then add up the logits, and the entropies, under both plans."""
    domain, kernel = teacher.domain, teacher.block(rows)
    one = domain.enter(torch.ones_like(z[:, 0]))
    scalings[0, rows] = domain.match(one, domain.row_sums(kernel, scalings[1]))
    image_rows, image_columns, text_rows, text_columns = scalings
    if domain is SCALING and not entropy:
        weighted = kernel * z
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
    a: Tensor | None,
    b: Tensor | None,
    spread: float | None,
    diagonal_penalty: float,
    iterations: int,
    entropy: bool,
    max_memory: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = x.shape[0]
    dense = stores(n, 1 if a is None else 2, x.element_size(), max_memory)
    matrix = x.new_empty(n, n) if dense else x.new_empty(0)
    kernel = x.new_empty(0) if a is None else torch.empty_like(matrix)
    return x.new_empty(7, n), x.new_empty(4, n), kernel, matrix, x.new_empty(4)


@torch.library.custom_op("otter_losses::soft_target_backward", mutates_args=())
def soft_target_backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    statistics: Tensor,
    scalings: Tensor,
    kernel: Tensor,
    logits: Tensor,
    state: Tensor,
    spread: float | None,
    diagonal_penalty: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y and the scale for the gradient (7, N) of the statistics, row block by row block."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        if x.device.type == "cpu":
            logarithmic, exponentials = bool(state[2]), bool(state[3])
        else:
            logarithmic, exponentials = spread is None or spread > safe_range(x.dtype), False
        teacher = None
        if a is not None and b is not None:
            teacher = TeacherMatrix.restore(a, b, diagonal_penalty, logarithmic, state[0], kernel)
        row_weight, column_weight = gradient[ROW_LSE], gradient[COLUMN_LSE]
        if exponentials:
            row_weight = row_weight * (state[1] - statistics[ROW_LSE]).exp()
            column_weight = column_weight * (state[1] - statistics[COLUMN_LSE]).exp()

        xs = x * scale
        dx, dy = torch.empty_like(x), torch.zeros_like(y)
        for rows in row_chunks(n, n):
            if exponentials:
                g = (row_weight[rows, None] + column_weight).mul_(logits[rows])
            else:
                z = logits[rows] if logits.numel() else xs[rows] @ y.T
                g = (z - statistics[ROW_LSE, rows, None]).exp_().mul_(row_weight[rows, None])
                g.add_((z - statistics[COLUMN_LSE]).exp_().mul_(column_weight))
            if teacher is not None:
                _add_plans(g, teacher, rows, scalings, gradient)
            g.diagonal(rows.start).add_(gradient[PAIR, rows])
            torch.mm(g, y, out=dx[rows])
            dy.addmm_(g.T, xs[rows])
        dscale = (x * dx).sum()
        return dx.mul_(scale), dy, dscale


def _add_plans(g: Tensor, teacher: TeacherMatrix, rows: slice, scalings: Tensor, gradient: Tensor) -> None:
    kernel = teacher.block(rows)
    image_rows, image_columns, text_rows, text_columns = scalings
    if teacher.domain is SCALING:
        left = torch.stack((gradient[ROW_DOT, rows] * image_rows[rows], text_rows[rows]), dim=1)
        right = torch.stack((image_columns, gradient[COLUMN_DOT] * text_columns))
        g.add_((left @ right).mul_(kernel))
    else:
        g.add_(teacher.domain.plan(kernel, image_rows[rows], image_columns).mul_(gradient[ROW_DOT, rows, None]))
        g.add_(teacher.domain.plan(kernel, text_rows[rows], text_columns).mul_(gradient[COLUMN_DOT]))


@soft_target_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    statistics: Tensor,
    scalings: Tensor,
    kernel: Tensor,
    logits: Tensor,
    state: Tensor,
    spread: float | None,
    diagonal_penalty: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), x.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, scale, a, b, ctx.spread, ctx.diagonal_penalty, *_ = inputs
    ctx.save_for_backward(x, y, scale, a, b, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 10
    dx, dy, dscale = soft_target_backward(gradient, *ctx.saved_tensors, ctx.spread, ctx.diagonal_penalty)
    return (dx, dy, dscale) + (None,) * 7


def refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "otter_losses has no second derivatives: its gradients are analytic, and differentiating them again was asked for. "
        "Call backward without create_graph, or use the functions of otter_losses.ops.reference, which autograd differentiates."
    )


soft_target.register_autograd(_backward, setup_context=_save)
soft_target_backward.register_autograd(refuse_second_derivative)
