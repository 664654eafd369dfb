"""Triton kernels: each walks once over a row block (rows, columns) of float32 matrices and keeps all else in vectors.

A program owns a tile of rows and walks over the columns, or owns a tile of columns and walks over the rows, so no two write to
one place: no atomics, and results repeat to the bit. `LOGARITHMIC` says how the transport kernel is held (see `ops.domains`):
as ``K`` with scalings that multiply, or as ``log K`` with potentials that add. `k` and `cosines` are contiguous; `scale` and
`bias` point to one number each; `start` is the block's first row in the whole matrix, for its diagonal.
"""

import triton
import triton.language as tl


@triton.jit
def _merge(top, total, values, AXIS: tl.constexpr):
    """Running maximum and sum of exponentials, after one more tile."""
    new = tl.maximum(top, tl.max(values, AXIS))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(top - shift) + tl.sum(tl.exp(values - tl.expand_dims(shift, AXIS)), AXIS)


@triton.jit
def _log_sum(top, total):
    return tl.where(total > 0.0, tl.where(top == float("-inf"), 0.0, top) + tl.log(total), float("-inf"))


@triton.jit
def _tile(k, mask, LOGARITHMIC: tl.constexpr):
    """Of the transport kernel; nothing beyond the matrix's edge."""
    return tl.load(k, mask, other=float("-inf") if LOGARITHMIC else 0.0)


@triton.jit
def row_scalings(k, columns_1, columns_2, rows_1, rows_2, m, n, LOGARITHMIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Both problems' row scalings: what turns the sums of ``K v`` into 1."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    top_1 = tl.full((BM,), float("-inf"), tl.float32)
    top_2 = tl.full((BM,), float("-inf"), tl.float32)
    sum_1 = tl.zeros((BM,), tl.float32)
    sum_2 = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        tile = _tile(k + i.to(tl.int64)[:, None] * n + j[None, :], mask, LOGARITHMIC)
        v_1 = tl.load(columns_1 + j, j < n, other=0.0)[None, :]
        v_2 = tl.load(columns_2 + j, j < n, other=0.0)[None, :]
        if LOGARITHMIC:
            top_1, sum_1 = _merge(top_1, sum_1, tile + v_1, 1)
            top_2, sum_2 = _merge(top_2, sum_2, tile + v_2, 1)
        else:
            sum_1 += tl.sum(tile * v_1, 1)
            sum_2 += tl.sum(tile * v_2, 1)
    if LOGARITHMIC:
        log_1, log_2 = _log_sum(top_1, sum_1), _log_sum(top_2, sum_2)
        tl.store(rows_1 + i, tl.where(log_1 == float("-inf"), log_1, -log_1), i < m)
        tl.store(rows_2 + i, tl.where(log_2 == float("-inf"), log_2, -log_2), i < m)
    else:
        tl.store(rows_1 + i, 1.0 / sum_1, i < m)
        tl.store(rows_2 + i, 1.0 / sum_2, i < m)


@triton.jit
def column_totals(k, rows_1, rows_2, totals_1, totals_2, m, n, LOGARITHMIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Both problems' column sums ``u K`` of the block, added to the totals of the blocks before."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    sum_1 = tl.load(totals_1 + j, j < n, other=0.0)
    sum_2 = tl.load(totals_2 + j, j < n, other=0.0)
    if LOGARITHMIC:
        top_1, top_2 = sum_1, sum_2
        sum_1 = tl.where(top_1 == float("-inf"), 0.0, 1.0)
        sum_2 = tl.where(top_2 == float("-inf"), 0.0, 1.0)
    for first in range(0, m, BM):
        i = first + tl.arange(0, BM)
        mask = (i < m)[:, None] & (j < n)[None, :]
        tile = _tile(k + i.to(tl.int64)[:, None] * n + j[None, :], mask, LOGARITHMIC)
        u_1 = tl.load(rows_1 + i, i < m, other=0.0)[:, None]
        u_2 = tl.load(rows_2 + i, i < m, other=0.0)[:, None]
        if LOGARITHMIC:
            top_1, sum_1 = _merge(top_1, sum_1, tile + u_1, 0)
            top_2, sum_2 = _merge(top_2, sum_2, tile + u_2, 0)
        else:
            sum_1 += tl.sum(tile * u_1, 0)
            sum_2 += tl.sum(tile * u_2, 0)
    if LOGARITHMIC:
        sum_1, sum_2 = _log_sum(top_1, sum_1), _log_sum(top_2, sum_2)
    tl.store(totals_1 + j, sum_1, j < n)
    tl.store(totals_2 + j, sum_2, j < n)


@triton.jit
def _plan(tile, rows, columns, LOGARITHMIC: tl.constexpr):
    return tl.exp(tile + rows + columns) if LOGARITHMIC else tile * rows * columns


@triton.jit
def _entropy(plan):
    return tl.where(plan > 0.0, -plan * tl.log(tl.where(plan > 0.0, plan, 1.0)), 0.0)


@triton.jit
def row_statistics(
    cosines,
    scale,
    k,
    rows,
    columns,
    lse,
    pair,
    dot,
    entropy,
    start,
    m,
    n,
    TEACHER: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOGARITHMIC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Of the logits' rows: log-sum-exp, the given pair's logit, expected logit and entropy under the image problem's plan."""
    s = tl.load(scale)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    own = tl.zeros((BM,), tl.float32)
    expected = tl.zeros((BM,), tl.float32)
    disorder = tl.zeros((BM,), tl.float32)
    if TEACHER:
        u = tl.load(rows + i, i < m, other=0.0)[:, None]
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        place = i.to(tl.int64)[:, None] * n + j[None, :]
        logits = tl.load(cosines + place, mask, other=0.0) * s
        top, total = _merge(top, total, tl.where(mask, logits, float("-inf")), 1)
        own += tl.sum(tl.where((i + start)[:, None] == j[None, :], logits, 0.0), 1)
        if TEACHER:
            tile = _tile(k + place, mask, LOGARITHMIC)
            plan = _plan(tile, u, tl.load(columns + j, j < n, other=0.0)[None, :], LOGARITHMIC)
            expected += tl.sum(plan * logits, 1)
            if ENTROPY:
                disorder += tl.sum(_entropy(plan), 1)
    tl.store(lse + i, _log_sum(top, total), i < m)
    tl.store(pair + i, own, i < m)
    if TEACHER:
        tl.store(dot + i, expected, i < m)
        if ENTROPY:
            tl.store(entropy + i, disorder, i < m)


@triton.jit
def column_statistics(
    cosines,
    scale,
    k,
    rows,
    columns,
    lse,
    dot,
    entropy,
    m,
    n,
    TEACHER: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOGARITHMIC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Of the logits' columns, added to the blocks before: log-sum-exp, expected logit and entropy under the text plan."""
    s = tl.load(scale)
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    top = tl.load(lse + j, j < n, other=float("-inf"))
    total = tl.where(top == float("-inf"), 0.0, 1.0)
    expected = tl.zeros((BN,), tl.float32)
    disorder = tl.zeros((BN,), tl.float32)
    if TEACHER:
        v = tl.load(columns + j, j < n, other=0.0)[None, :]
    for first in range(0, m, BM):
        i = first + tl.arange(0, BM)
        mask = (i < m)[:, None] & (j < n)[None, :]
        place = i.to(tl.int64)[:, None] * n + j[None, :]
        logits = tl.load(cosines + place, mask, other=0.0) * s
        top, total = _merge(top, total, tl.where(mask, logits, float("-inf")), 0)
        if TEACHER:
            tile = _tile(k + place, mask, LOGARITHMIC)
            plan = _plan(tile, tl.load(rows + i, i < m, other=0.0)[:, None], v, LOGARITHMIC)
            expected += tl.sum(plan * logits, 0)
            if ENTROPY:
                disorder += tl.sum(_entropy(plan), 0)
    tl.store(lse + j, _log_sum(top, total), j < n)
    if TEACHER:
        tl.store(dot + j, tl.load(dot + j, j < n, other=0.0) + expected, j < n)
        if ENTROPY:
            tl.store(entropy + j, tl.load(entropy + j, j < n, other=0.0) + disorder, j < n)


@triton.jit
def logits_gradient(
    cosines,
    scale,
    k,
    rows_1,
    columns_1,
    rows_2,
    columns_2,
    row_lse,
    column_lse,
    row_lse_weight,
    column_lse_weight,
    pair_weight,
    row_dot_weight,
    column_dot_weight,
    g,
    start,
    m,
    n,
    TEACHER: tl.constexpr,
    LOGARITHMIC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``G_ij = a_i softmax_row + b_j softmax_column + c_i delta_ij + d_i M_ij + e_j M'_ij``; `g` may be `cosines`."""
    s = tl.load(scale)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    place = i.to(tl.int64)[:, None] * n + j[None, :]
    logits = tl.load(cosines + place, mask, other=0.0) * s
    by_row = tl.exp(logits - tl.load(row_lse + i, i < m, other=0.0)[:, None])
    by_column = tl.exp(logits - tl.load(column_lse + j, j < n, other=0.0)[None, :])
    value = tl.load(row_lse_weight + i, i < m, other=0.0)[:, None] * by_row
    value += tl.load(column_lse_weight + j, j < n, other=0.0)[None, :] * by_column
    own = tl.load(pair_weight + i, i < m, other=0.0)[:, None]
    value += tl.where((i + start)[:, None] == j[None, :], own, 0.0)
    if TEACHER:
        tile = _tile(k + place, mask, LOGARITHMIC)
        u_1 = tl.load(rows_1 + i, i < m, other=0.0)[:, None]
        v_1 = tl.load(columns_1 + j, j < n, other=0.0)[None, :]
        u_2 = tl.load(rows_2 + i, i < m, other=0.0)[:, None]
        v_2 = tl.load(columns_2 + j, j < n, other=0.0)[None, :]
        value += tl.load(row_dot_weight + i, i < m, other=0.0)[:, None] * _plan(tile, u_1, v_1, LOGARITHMIC)
        value += tl.load(column_dot_weight + j, j < n, other=0.0)[None, :] * _plan(tile, u_2, v_2, LOGARITHMIC)
    tl.store(g + place, value, mask)


@triton.jit
def _unlikely(cosines, scale, bias, i, j, start, mask, n):
    """``-l z``: large where the answer to "are i and j a pair?" is wrong."""
    z = tl.load(cosines + i.to(tl.int64)[:, None] * n + j[None, :], mask, other=0.0) * tl.load(scale) + tl.load(bias)
    return tl.where((i + start)[:, None] == j[None, :], -z, z)


@triton.jit
def sigmoid_losses(cosines, scale, bias, losses, start, m, n, BM: tl.constexpr, BN: tl.constexpr):
    """Row sums of ``-log sigmoid(l z) = log(1 + exp(-l z))``."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        unlikely = _unlikely(cosines, scale, bias, i, j, start, mask, n)
        small = tl.exp(-tl.abs(unlikely))
        sum_ = 1.0 + small
        # log(1 + small), exact also where the sum rounds to 1.
        log = tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)))
        total += tl.sum(tl.where(mask, tl.maximum(unlikely, 0.0) + log, 0.0), 1)
    tl.store(losses + i, total, i < m)


@triton.jit
def sigmoid_gradient(cosines, scale, bias, weight, g, row_total, start, m, n, BM: tl.constexpr, BN: tl.constexpr):
    """``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)`` and its row sums; `g` may be `cosines`."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    a = tl.load(weight + i, i < m, other=0.0)[:, None]
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        unlikely = _unlikely(cosines, scale, bias, i, j, start, mask, n)
        value = a / (1.0 + tl.exp(-unlikely))
        value = tl.where((i + start)[:, None] == j[None, :], -value, value)
        tl.store(g + i.to(tl.int64)[:, None] * n + j[None, :], value, mask)
        total += tl.sum(tl.where(mask, value, 0.0), 1)
    tl.store(row_total + i, total, i < m)
