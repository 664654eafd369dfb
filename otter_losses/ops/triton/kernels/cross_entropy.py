"""The logits' statistics and their gradient. See `otter_losses.ops.soft_target` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.features import apart
from otter_losses.ops.triton.kernels.held import LOGARITHMIC, held, log_sum


@triton.jit
def statistics(
    cosines,
    scale,
    k,
    numbers,
    image_columns,
    text_rows,
    text_columns,
    row_parts,
    column_parts,
    pair,
    start,
    m,
    n,
    TEACHER: tl.constexpr,
    ENTROPY: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """What one tile adds to the statistics of its rows, (4, tiles, m), and of its columns, (3, tiles, n).

    Of rows: log-sum-exp of the logits; of the image problem's weights ``w = K v``, which its last normalisation has still to
    scale: their sum, and sums of ``w z`` and ``w log w``. Where LOGARITHMIC: log of the sum, and means of ``z`` and ``log w``
    instead. Of columns: log-sum-exp, sum of the text problem's plan times ``z``, its entropy.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    z = tl.load(cosines + i.to(tl.int64)[:, None] * n + j[None, :], mask, other=0.0) * tl.load(scale)
    own = (i + start)[:, None] == j[None, :]
    holds_own = (i < m) & (i + start >= tl.program_id(1) * BN) & (i + start < (tl.program_id(1) + 1) * BN)
    tl.store(pair + i, tl.sum(tl.where(own, z, 0.0), 1), holds_own)

    inside = tl.where(mask, z, float("-inf"))
    row = row_parts + tl.program_id(1) * m + i
    column = column_parts + tl.program_id(0) * n + j
    rows, columns = tl.num_programs(1) * m, tl.num_programs(0) * n
    top = tl.max(inside, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(row, log_sum(top, tl.sum(tl.exp(inside - top[:, None]), 1)), i < m)
    top = tl.max(inside, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(column, log_sum(top, tl.sum(tl.exp(inside - top[None, :]), 0)), j < n)
    if TEACHER:
        tile = held(k, numbers, i, j, start, n, mask, KIND, RAW)
        v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
        u_text = tl.load(text_rows + i, i < m, other=0.0)[:, None]
        v_text = tl.load(text_columns + j, j < n, other=0.0)[None, :]
        if KIND == LOGARITHMIC:
            log_weight = tile + v
            top = tl.max(log_weight, 1)
            top = tl.where(top == float("-inf"), 0.0, top)
            weight = tl.exp(log_weight - top[:, None])
            total = tl.sum(weight, 1)
            share = weight / tl.where(total > 0.0, total, 1.0)[:, None]
            total = log_sum(top, total)
            plan = tl.exp(tile + u_text + v_text)
        else:
            share = tile * v
            total = tl.sum(share, 1)
            plan = tile * u_text * v_text
        tl.store(row + rows, total, i < m)
        tl.store(row + 2 * rows, tl.sum(share * z, 1), i < m)
        tl.store(column + columns, tl.sum(plan * z, 0), j < n)
        if ENTROPY:
            if KIND != LOGARITHMIC:
                log_weight = tl.log(tl.where(share > 0.0, share, 1.0))
            tl.store(row + 3 * rows, tl.sum(tl.where(share > 0.0, share * log_weight, 0.0), 1), i < m)
            log_plan = tl.log(tl.where(plan > 0.0, plan, 1.0))
            tl.store(column + 2 * columns, -tl.sum(plan * log_plan, 0), j < n)


@triton.jit
def merge_rows(
    parts,
    scaling,
    lse,
    dot,
    entropy,
    tiles,
    m,
    TEACHER: tl.constexpr,
    ENTROPY: tl.constexpr,
    KIND: tl.constexpr,
    BM: tl.constexpr,
):
    """Row statistics from their parts; with a teacher also the image problem's last row scaling."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    size = tiles * m
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    weight_top = tl.full((BM,), float("-inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    expected = tl.zeros((BM,), tl.float32)
    disorder = tl.zeros((BM,), tl.float32)
    for tile in range(0, tiles):
        place = parts + tile * m + i
        value = tl.load(place, i < m, other=0.0)
        new = tl.maximum(top, value)
        total = total * tl.exp(top - new) + tl.exp(value - new)
        top = new
        if TEACHER:
            part = tl.load(place + size, i < m, other=0.0)
            share = part * 0.0 + 1.0
            if KIND == LOGARITHMIC:
                new = tl.maximum(weight_top, part)
                shift = tl.where(new == float("-inf"), 0.0, new)
                before = tl.exp(weight_top - shift)
                share = tl.exp(part - shift)
                weight_top = new
                weight = weight * before + share
                expected *= before
                disorder *= before
            else:
                weight += part
            expected += share * tl.load(place + 2 * size, i < m, other=0.0)
            if ENTROPY:
                disorder += share * tl.load(place + 3 * size, i < m, other=0.0)
    tl.store(lse + i, log_sum(top, total), i < m)
    if TEACHER:
        if KIND == LOGARITHMIC:
            log = log_sum(weight_top, weight)
            normaliser = tl.where(weight > 0.0, weight, 1.0)
            tl.store(scaling + i, tl.where(log == float("-inf"), log, -log), i < m)
        else:
            log = tl.log(weight)
            normaliser = weight
            tl.store(scaling + i, 1.0 / weight, i < m)
        tl.store(dot + i, expected / normaliser, i < m)
        if ENTROPY:
            tl.store(entropy + i, log - disorder / normaliser, i < m)


@triton.jit
def merge_columns(
    parts,
    lse,
    dot,
    entropy,
    tiles,
    n,
    TEACHER: tl.constexpr,
    ENTROPY: tl.constexpr,
    FIRST: tl.constexpr,
    BN: tl.constexpr,
):
    """Column statistics from the block's parts, added to those of the blocks before."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    size = tiles * n
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    expected = tl.zeros((BN,), tl.float32)
    disorder = tl.zeros((BN,), tl.float32)
    if not FIRST:
        top = tl.load(lse + j, j < n, other=0.0)
        total += 1.0
        if TEACHER:
            expected = tl.load(dot + j, j < n, other=0.0)
            if ENTROPY:
                disorder = tl.load(entropy + j, j < n, other=0.0)
    for tile in range(0, tiles):
        place = parts + tile * n + j
        value = tl.load(place, j < n, other=0.0)
        new = tl.maximum(top, value)
        total = total * tl.exp(top - new) + tl.exp(value - new)
        top = new
        if TEACHER:
            expected += tl.load(place + size, j < n, other=0.0)
            if ENTROPY:
                disorder += tl.load(place + 2 * size, j < n, other=0.0)
    tl.store(lse + j, log_sum(top, total), j < n)
    if TEACHER:
        tl.store(dot + j, expected, j < n)
        if ENTROPY:
            tl.store(entropy + j, disorder, j < n)


@triton.jit
def _plan(tile, rows, columns, KIND: tl.constexpr):
    # Kernel times row scaling first: row times column scaling of a removed entry can overflow.
    return tl.exp(tile + rows + columns) if KIND == LOGARITHMIC else tile * rows * columns


@triton.jit
def logits_gradient(
    cosines,
    scale,
    k,
    numbers,
    image_rows,
    text_rows,
    image_columns,
    text_columns,
    row_lse,
    column_lse,
    row_lse_weight,
    column_lse_weight,
    pair_weight,
    row_dot_weight,
    column_dot_weight,
    sum_weight,
    g,
    diagonal,
    row_residual,
    column_residual,
    start,
    m,
    n,
    gain,
    TEACHER: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    SUM: tl.constexpr,
    APART: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``G_ij = a_i softmax_row + a_j softmax_column + c_i delta_ij + d_i M_ij + d_j M'_ij + f_i``.

    `g` may be `cosines`. Where APART it is float16, see `apart`, and the diagonal goes to a vector of its own.
    """
    s = tl.load(scale)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    place = i.to(tl.int64)[:, None] * n + j[None, :]
    z = tl.load(cosines + place, mask, other=0.0) * s
    by_row = tl.exp(z - tl.load(row_lse + i, i < m, other=0.0)[:, None])
    by_column = tl.exp(z - tl.load(column_lse + j, j < n, other=0.0)[None, :])
    value = tl.load(row_lse_weight + i, i < m, other=0.0)[:, None] * by_row
    value += tl.load(column_lse_weight + j, j < n, other=0.0)[None, :] * by_column
    own = (i + start)[:, None] == j[None, :]
    value += tl.where(own, tl.load(pair_weight + i, i < m, other=0.0)[:, None], 0.0)
    if TEACHER:
        tile = held(k, numbers, i, j, start, n, mask, KIND, RAW)
        u = tl.load(image_rows + i, i < m, other=0.0)[:, None]
        v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
        value += tl.load(row_dot_weight + i, i < m, other=0.0)[:, None] * _plan(tile, u, v, KIND)
        u = tl.load(text_rows + i, i < m, other=0.0)[:, None]
        v = tl.load(text_columns + j, j < n, other=0.0)[None, :]
        value += tl.load(column_dot_weight + j, j < n, other=0.0)[None, :] * _plan(tile, u, v, KIND)
    if SUM:
        value += tl.load(sum_weight + i, i < m, other=0.0)[:, None]
    if APART:
        holds_own = (i < m) & (i + start >= tl.program_id(1) * BN) & (i + start < (tl.program_id(1) + 1) * BN)
        tl.store(diagonal + i, tl.sum(tl.where(own, value, 0.0), 1), holds_own)
        value = apart(value, own, mask, gain, row_residual, column_residual, i, j, m, n)
    tl.store(g + place, value, mask)
