"""The logits' statistics and their gradient. See `otter_losses.ops.statistics` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import (
    log_sum,
    negated_log,
    plan_tile,
    store_diagonal,
    store_expected_logits,
    store_gradient,
    store_log_sum_exps,
)
from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC, cosine_tile, gibbs_tile
from otter_losses.ops.triton.launch import TILES, TILES_COMPUTED, VECTOR, Kernel


@triton.jit
def statistics(
    left,
    right,
    width,
    scale,
    gibbs,
    params,
    image_columns,
    text_rows,
    text_columns,
    row_parts,
    column_parts,
    own_logit,
    row_offset,
    m,
    n,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """What one tile adds to the statistics of its rows, (4, tiles, m), and of its columns, (3, tiles, n)."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    z = cosine_tile(left, right, width, i, j, m=m, n=n, mask=mask, COMPUTED=COMPUTED, WHOLE=WHOLE, BM=BM, BN=BN, BK=BK) * tl.load(
        scale
    )
    on_diagonal = (i + row_offset)[:, None] == j[None, :]
    store_diagonal(z, on_diagonal, own_logit, i, m, row_offset, BN)
    store_log_sum_exps(z, i, j, m, n, mask, row_parts, column_parts)
    if SOFT:
        tile = gibbs_tile(gibbs, params, i, j, row_offset, n, mask, KIND, RAW)
        store_expected_logits(
            z,
            tile,
            i,
            j,
            m=m,
            n=n,
            image_columns=image_columns,
            text_rows=text_rows,
            text_columns=text_columns,
            row_parts=row_parts,
            column_parts=column_parts,
            DIVERGENCE=DIVERGENCE,
            KIND=KIND,
        )


@triton.jit
def merge_rows(
    parts,
    scaling,
    lse,
    expected_logit,
    entropy,
    tiles,
    m,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
    BM: tl.constexpr,
):
    """Row statistics from their parts; with soft targets also the image problem's last row scaling."""
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
        if SOFT:
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
            if DIVERGENCE:
                disorder += share * tl.load(place + 3 * size, i < m, other=0.0)
    tl.store(lse + i, log_sum(top, total), i < m)
    if SOFT:
        if KIND == LOGARITHMIC:
            log = log_sum(weight_top, weight)
            normaliser = tl.where(weight > 0.0, weight, 1.0)
            tl.store(scaling + i, negated_log(log), i < m)
        else:
            log = tl.log(weight)
            normaliser = weight
            tl.store(scaling + i, 1.0 / weight, i < m)
        tl.store(expected_logit + i, expected / normaliser, i < m)
        if DIVERGENCE:
            tl.store(entropy + i, log - disorder / normaliser, i < m)


@triton.jit
def merge_columns(
    parts,
    lse,
    expected_logit,
    entropy,
    tiles,
    n,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
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
        if SOFT:
            expected = tl.load(expected_logit + j, j < n, other=0.0)
            if DIVERGENCE:
                disorder = tl.load(entropy + j, j < n, other=0.0)
    for tile in range(0, tiles):
        place = parts + tile * n + j
        value = tl.load(place, j < n, other=0.0)
        new = tl.maximum(top, value)
        total = total * tl.exp(top - new) + tl.exp(value - new)
        top = new
        if SOFT:
            expected += tl.load(place + size, j < n, other=0.0)
            if DIVERGENCE:
                disorder += tl.load(place + 2 * size, j < n, other=0.0)
    tl.store(lse + j, log_sum(top, total), j < n)
    if SOFT:
        tl.store(expected_logit + j, expected, j < n)
        if DIVERGENCE:
            tl.store(entropy + j, disorder, j < n)


@triton.jit
def logits_gradient(
    left,
    right,
    width,
    scale,
    gibbs,
    params,
    image_rows,
    text_rows,
    image_columns,
    text_columns,
    row_lse,
    column_lse,
    row_lse_weight,
    column_lse_weight,
    diagonal_weight,
    row_plan_weight,
    column_plan_weight,
    row_uniform,
    column_uniform,
    g,
    diagonal,
    row_residual,
    column_residual,
    row_offset,
    m,
    n,
    gain,
    SOFT: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    UNIFORM: tl.constexpr,
    HALF: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of one tile of logits, with `statistics.Weights`; `g` may be the stored block `left`."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    z = cosine_tile(left, right, width, i, j, m=m, n=n, mask=mask, COMPUTED=COMPUTED, WHOLE=WHOLE, BM=BM, BN=BN, BK=BK) * tl.load(
        scale
    )
    by_row = tl.exp(z - tl.load(row_lse + i, i < m, other=0.0)[:, None])
    by_column = tl.exp(z - tl.load(column_lse + j, j < n, other=0.0)[None, :])
    value = tl.load(row_lse_weight + i, i < m, other=0.0)[:, None] * by_row
    value += tl.load(column_lse_weight + j, j < n, other=0.0)[None, :] * by_column
    on_diagonal = (i + row_offset)[:, None] == j[None, :]
    value -= tl.where(on_diagonal, tl.load(diagonal_weight + i, i < m, other=0.0)[:, None], 0.0)
    if SOFT:
        tile = gibbs_tile(gibbs, params, i, j, row_offset, n, mask, KIND, RAW)
        u = tl.load(image_rows + i, i < m, other=0.0)[:, None]
        v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
        value -= tl.load(row_plan_weight + i, i < m, other=0.0)[:, None] * plan_tile(tile, u, v, KIND)
        u = tl.load(text_rows + i, i < m, other=0.0)[:, None]
        v = tl.load(text_columns + j, j < n, other=0.0)[None, :]
        value -= tl.load(column_plan_weight + j, j < n, other=0.0)[None, :] * plan_tile(tile, u, v, KIND)
    if UNIFORM:
        value -= tl.load(row_uniform + i, i < m, other=0.0)[:, None]
        value -= tl.load(column_uniform + j, j < n, other=0.0)[None, :]
    store_gradient(
        value,
        on_diagonal,
        mask,
        i,
        j,
        m=m,
        n=n,
        row_offset=row_offset,
        gain=gain,
        g=g,
        diagonal=diagonal,
        row_residual=row_residual,
        column_residual=column_residual,
        HALF=HALF,
        BN=BN,
    )


STATISTICS = Kernel(statistics, TILES, TILES_COMPUTED, reads=("cosines", "K"))
MERGE_ROWS = Kernel(merge_rows, ({"BM": VECTOR["BN"], "num_warps": VECTOR["num_warps"]},))
MERGE_COLUMNS = Kernel(merge_columns, (VECTOR,))
GRADIENT = Kernel(logits_gradient, TILES, TILES_COMPUTED, reads=("cosines", "K"), writes=("G",))
