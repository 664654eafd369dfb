"""The statistics of `otter_losses.ops.soft_target` and their gradient in plain torch, for any device and dtype."""

import torch
from torch import Tensor

from otter_losses.ops.contract import (
    COLUMN_DOT,
    COLUMN_ENTROPY,
    COLUMN_LSE,
    PAIR,
    ROW_DOT,
    ROW_ENTROPY,
    ROW_LSE,
    Backward,
    Saved,
    Storage,
    Teacher,
    Weights,
    computing,
    share_columns,
    wanted,
)
from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, reads_freely, safe_range
from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.transport import Kernel, solve
from otter_losses.ops.world import World


def forward(x: Tensor, y: Tensor, scale: Tensor, asked: Teacher | None, storage: Storage, world: World) -> Saved:
    n = len(y)
    own_teacher = asked is not None and asked.similarity.v is x and asked.similarity.t is y
    x, y = x.to(computing(x)), y.to(computing(x))
    own = world.own(len(x))
    statistics, scalings = x.new_zeros(7, n), x.new_zeros(4, n)
    image_rows, text_rows, image_columns, text_columns = scalings
    statistics[COLUMN_LSE] = -torch.inf
    cosines = x @ y.T if storage.cosines and (asked is None or own_teacher) else None
    teacher = None
    if asked is not None:
        similarity = asked.similarity.to(x.dtype)
        teacher = Kernel.build(similarity, asked.spread, storage.kernel is not None, cosines if own_teacher else None, world)
        image_columns[:], text_rows[own], text_columns[:] = solve(teacher, asked.iterations)
    if storage.cosines and cosines is None:
        cosines = x @ y.T

    shift = _common_shift(x, y, scale, cosines)
    chunks = row_chunks(len(x), n, x.device)
    # Fresh memory costs a page fault per 4 KiB, more than the arithmetic on it: row blocks share theirs.
    logits, scratch = x.new_empty(chunks[0].stop, n), x.new_empty(chunks[0].stop, n)
    for rows in chunks:
        z = logits[: rows.stop - rows.start]
        if cosines is None:
            torch.mm(x[rows], y.T, out=z).mul_(scale)
        else:
            torch.mul(cosines[rows], scale, out=z)
        here = world.here(rows)
        statistics[PAIR, here] = z.diagonal(here.start)
        if teacher is not None and asked is not None:
            kernel = teacher.block(rows)
            one = teacher.domain.enter(torch.ones_like(image_rows[here]))
            image_rows[here] = teacher.domain.match(one, teacher.domain.row_sums(kernel, image_columns))
            _expected_logits(teacher.domain, kernel, here, z, scalings, statistics, asked.entropy, scratch[: len(z)])
        if shift is None or cosines is None:
            statistics[ROW_LSE, here] = z.logsumexp(1)
            partial = z.logsumexp(0)
        else:
            exponentials = torch.exp(z.sub_(shift), out=cosines[rows])
            statistics[ROW_LSE, here] = exponentials.sum(1).log_().add_(shift)
            partial = exponentials.sum(0).log_().add_(shift)
        statistics[COLUMN_LSE] = torch.logaddexp(statistics[COLUMN_LSE], partial)

    share_columns(statistics, asked, world)
    # The shifts of both matrices, and 1 where the kernel is held as logarithms and where the student's matrix holds exponentials.
    state, nothing = x.new_zeros(4), x.new_empty(0)
    if teacher is not None:
        state[0], state[2] = teacher.shift, float(teacher.domain is LOGARITHMIC)
    if shift is not None:
        state[1], state[3] = shift, 1.0
    kept = nothing if teacher is None or teacher.stored is None else teacher.stored
    return statistics, scalings, kept, nothing.clone() if cosines is None else cosines, state


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
    image_rows, text_rows, image_columns, text_columns = scalings
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


def backward(
    weights: Weights,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    asked: Teacher | None,
    saved: Saved,
    wants_dx: bool,
    wants_dy: bool,
    world: World,
) -> Backward:
    n, dtype = len(y), x.dtype
    x, y = x.to(computing(x)), y.to(computing(x))
    statistics, scalings, stored, cosines, state = saved
    teacher = None
    if reads_freely(x):
        logarithmic, exponentials = bool(state[2]), bool(state[3])
    else:
        logarithmic, exponentials = asked is None or asked.spread is None or asked.spread > safe_range(x.dtype), False
    if asked is not None:
        domain = LOGARITHMIC if logarithmic else SCALING
        teacher = Kernel(asked.similarity.to(x.dtype), domain, state[0], stored if stored.numel() else None)
    row_weight = column_weight = weights.lse
    if exponentials:  # about shifts that differ by up to e^80
        row_weight = row_weight * (state[1] - statistics[ROW_LSE]).exp()
        column_weight = column_weight * (state[1] - statistics[COLUMN_LSE]).exp()

    dx, dy = wanted(x, wants_dx), wanted(y, wants_dy)  # dy: this rank's share of all texts'
    chunks = row_chunks(len(x), n, x.device)
    space, scratch = x.new_empty(chunks[0].stop, n), x.new_empty(chunks[0].stop, n)
    for rows in chunks:
        g, here = space[: rows.stop - rows.start], world.here(rows)
        if exponentials:
            torch.add(row_weight[here, None], column_weight, out=g).mul_(cosines[rows])
        else:
            z = cosines[rows] * scale if cosines.numel() else (x[rows] @ y.T).mul_(scale)
            torch.sub(z, statistics[ROW_LSE, here, None], out=g).exp_().mul_(row_weight[here, None])
            g.add_((z - statistics[COLUMN_LSE]).exp_().mul_(column_weight))
        if teacher is not None:
            _add_plans(g, teacher.domain, teacher.block(rows), here, scalings, weights.dot, scratch[: len(g)])
        g.diagonal(here.start).add_(weights.pair[here])
        if weights.sum is not None:
            g.add_(weights.sum[here, None])
        if wants_dx:
            torch.mm(g, y, out=dx[rows])
        if wants_dy:
            dy.addmm_(g.T, x[rows], beta=min(rows.start, 1))  # the first block overwrites
    dscale = ((x * dx) if wants_dx else (y * dy)).sum() * weights.magnitude  # this rank's share
    scale = scale * weights.magnitude
    dy = world.scatter(dy.mul_(scale)) if wants_dy else dy
    return dx.mul_(scale).to(dtype), dy.to(dtype), dscale


def _add_plans(g: Tensor, domain: Domain, kernel: Tensor, rows: slice, scalings: Tensor, weight: Tensor, scratch: Tensor) -> None:
    image_rows, text_rows, image_columns, text_columns = scalings
    if domain is SCALING:
        # Kernel times row scaling first: row times column scaling of a removed entry can overflow.
        torch.mul(kernel, (weight[rows] * image_rows[rows]).unsqueeze(1), out=scratch)
        g.addcmul_(scratch, image_columns)
        torch.mul(kernel, text_rows[rows].unsqueeze(1), out=scratch)
        g.addcmul_(scratch, weight * text_columns)
    else:
        g.add_(domain.plan(kernel, image_rows[rows], image_columns).mul_(weight[rows, None]))
        g.add_(domain.plan(kernel, text_rows[rows], text_columns).mul_(weight))
