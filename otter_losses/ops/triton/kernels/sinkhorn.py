"""The sweeps that solve both transport problems of a batch. See `otter_losses.ops.eager.sinkhorn` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import log_sum, merged, negated_log, store_encoded
from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC, cosine_tile, gibbs_tile, teacher_logits
from otter_losses.ops.triton.launch import TILES_COMPUTED, VECTOR, Kernel


@triton.jit
def encode(
    left,
    right,
    width,
    out,
    params,
    totals,
    row_offset,
    m,
    n,
    segment,
    KIND: tl.constexpr,
    WRITE: tl.constexpr,
    FIRST: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The opening sweep: store the block as the Gibbs kernel is held, and add up its columns.

    `out` may be a stored product `left`.
    """
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    place = totals + tl.program_id(1).to(tl.int64) * n + j
    total = tl.zeros((BN,), tl.float32)
    top = tl.full((BN,), float("-inf"), tl.float32)
    if not FIRST:
        total = tl.load(place, j < n, other=0.0)
        if KIND == LOGARITHMIC:
            top = total
            total = tl.where(top == float("-inf"), 0.0, 1.0)
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, m)
    for first in range(begin, end, BM):
        i = first + tl.arange(0, BM)
        mask = (i < end)[:, None] & (j < n)[None, :]
        product = cosine_tile(
            left, right, width, i, j, m=end, n=n, mask=mask, COMPUTED=COMPUTED, WHOLE=WHOLE, BM=BM, BN=BN, BK=BK
        )
        value = teacher_logits(product, params, i, j, row_offset, mask)
        value = store_encoded(value, params, out + i.to(tl.int64)[:, None] * n + j[None, :], mask, KIND, WRITE)
        if KIND == LOGARITHMIC:
            top, total = merged(top, total, value, 0)
        else:
            total += tl.sum(value, 0)
    if KIND == LOGARITHMIC:
        total = log_sum(top, total)
    tl.store(place, total, j < n)


@triton.jit
def row_scalings(
    gibbs,
    params,
    columns_1,
    columns_2,
    rows_1,
    rows_2,
    row_offset,
    m,
    n,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Both problems' row scalings: what turns the row sums ``K v`` into 1."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    top_1 = tl.full((BM,), float("-inf"), tl.float32)
    top_2 = tl.full((BM,), float("-inf"), tl.float32)
    sum_1 = tl.zeros((BM,), tl.float32)
    sum_2 = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        tile = gibbs_tile(gibbs, params, i, j, row_offset, n, mask, KIND, RAW)
        v_1 = tl.load(columns_1 + j, j < n, other=0.0)[None, :]
        v_2 = tl.load(columns_2 + j, j < n, other=0.0)[None, :]
        if KIND == LOGARITHMIC:
            top_1, sum_1 = merged(top_1, sum_1, tile + v_1, 1)
            top_2, sum_2 = merged(top_2, sum_2, tile + v_2, 1)
        else:
            sum_1 += tl.sum(tile * v_1, 1)
            sum_2 += tl.sum(tile * v_2, 1)
    if KIND == LOGARITHMIC:
        log_1, log_2 = log_sum(top_1, sum_1), log_sum(top_2, sum_2)
        tl.store(rows_1 + i, negated_log(log_1), i < m)
        tl.store(rows_2 + i, negated_log(log_2), i < m)
    else:
        tl.store(rows_1 + i, 1.0 / sum_1, i < m)
        tl.store(rows_2 + i, 1.0 / sum_2, i < m)


@triton.jit
def column_sums(
    gibbs,
    params,
    rows_1,
    rows_2,
    totals,
    row_offset,
    m,
    n,
    segment,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Both problems' column sums ``u K``, of each segment of the block's rows; added to those of the blocks before."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    place = totals + tl.program_id(1).to(tl.int64) * 2 * n + j
    top_1 = tl.full((BN,), float("-inf"), tl.float32)
    top_2 = tl.full((BN,), float("-inf"), tl.float32)
    sum_1 = tl.zeros((BN,), tl.float32)
    sum_2 = tl.zeros((BN,), tl.float32)
    if not FIRST:
        sum_1 = tl.load(place, j < n, other=0.0)
        sum_2 = tl.load(place + n, j < n, other=0.0)
        if KIND == LOGARITHMIC:
            top_1, top_2 = sum_1, sum_2
            sum_1 = tl.where(top_1 == float("-inf"), 0.0, 1.0)
            sum_2 = tl.where(top_2 == float("-inf"), 0.0, 1.0)
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, m)
    for first in range(begin, end, BM):
        i = first + tl.arange(0, BM)
        mask = (i < end)[:, None] & (j < n)[None, :]
        tile = gibbs_tile(gibbs, params, i, j, row_offset, n, mask, KIND, RAW)
        u_1 = tl.load(rows_1 + i, i < end, other=0.0)[:, None]
        u_2 = tl.load(rows_2 + i, i < end, other=0.0)[:, None]
        if KIND == LOGARITHMIC:
            top_1, sum_1 = merged(top_1, sum_1, tile + u_1, 0)
            top_2, sum_2 = merged(top_2, sum_2, tile + u_2, 0)
        else:
            sum_1 += tl.sum(tile * u_1, 0)
            sum_2 += tl.sum(tile * u_2, 0)
    if KIND == LOGARITHMIC:
        sum_1, sum_2 = log_sum(top_1, sum_1), log_sum(top_2, sum_2)
    tl.store(place, sum_1, j < n)
    tl.store(place + n, sum_2, j < n)


@triton.jit
def update_scalings(totals, out, segments, size, KIND: tl.constexpr, BN: tl.constexpr):
    """The scalings that turn column sums, (segments, size), into 1."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for segment in range(0, segments):
        value = tl.load(totals + segment * size + j, j < size, other=1.0)
        if KIND == LOGARITHMIC:
            new = tl.maximum(top, value)
            shift = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(top - shift) + tl.exp(value - shift)
            top = new
        else:
            total += value
    if KIND == LOGARITHMIC:
        log = log_sum(top, total)
        tl.store(out + j, negated_log(log), j < size)
    else:
        tl.store(out + j, 1.0 / total, j < size)


ROWS = (
    {"BM": 4, "BN": 256, "num_warps": 4},
    {"BM": 1, "BN": 2048, "num_warps": 4},
    {"BM": 8, "BN": 512, "num_warps": 8},
)
"""Of programs that own rows."""

COLUMNS = (
    {"BM": 32, "BN": 64, "num_warps": 4},
    {"BM": 16, "BN": 128, "num_warps": 4},
    {"BM": 32, "BN": 128, "num_warps": 8},
)
"""Of programs that own columns of a segment of the rows."""

ENCODE_TILE = {**COLUMNS[0], "BK": 32}

ENCODE = Kernel(encode, (ENCODE_TILE,), TILES_COMPUTED, reads=("cosines",), writes=("K",))
ROW_SCALINGS = Kernel(row_scalings, ROWS, reads=("K",))
COLUMN_SUMS = Kernel(column_sums, COLUMNS, reads=("K",))
UPDATE_SCALINGS = Kernel(update_scalings, (VECTOR,))
