"""The sweeps that solve both transport problems of a batch. See `otter_losses.ops.eager.sinkhorn` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import log_sum, negated_log, store_encoded
from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC, cosine_tile, gibbs_tile, own_entries, program_tile, teacher_logits
from otter_losses.ops.triton.launch import COMPUTED_WRITTEN, LOADED, MERGE, Kernel


@triton.jit
def encode(
    left,
    right,
    width,
    out,
    params,
    column_parts,
    apart_rows,
    apart_columns,
    diagonal,
    m,
    n,
    stride,
    KIND: tl.constexpr,
    WRITE: tl.constexpr,
    APART: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The opening sweep: store a tile as the Gibbs kernel is held, and what it adds to the sums of its columns, (tiles, n).

    `out` may be a stored product `left`.
    """
    row_tile, column_tile = program_tile(m, n, BM, BN)
    row, column = row_tile * BM, column_tile * BN
    i = row + tl.arange(0, BM)
    j = column + tl.arange(0, BN)
    product = cosine_tile(left, right, width, row, column, m, n, stride, EVEN, COMPUTED, WHOLE, DESCRIPTORS, BM, BN, BK)
    mask = (i < m)[:, None] & (j < n)[None, :]
    own = own_entries(apart_rows, apart_columns, i, j, diagonal, m, n, APART)
    value = teacher_logits(product, params, own, mask)
    value = store_encoded(value, params, out + i.to(tl.int64)[:, None] * n + j[None, :], mask, KIND, WRITE)
    if KIND == LOGARITHMIC:
        top = tl.max(value, 0)
        total = log_sum(top, tl.sum(tl.exp(value - tl.where(top == float("-inf"), 0.0, top)[None, :]), 0))
    else:
        total = tl.sum(value, 0)
    tl.store(column_parts + row_tile.to(tl.int64) * n + j, total, j < n)


@triton.jit
def _nothing(BM: tl.constexpr, BN: tl.constexpr):
    """Running sums before the first value, and their running maxima."""
    return tl.full((BM, BN), float("-inf"), tl.float32), tl.zeros((BM, BN), tl.float32)


@triton.jit
def _added(top, total, value, KIND: tl.constexpr):
    """Running sums, entry by entry: of numbers, or where LOGARITHMIC of exponentials about running maxima."""
    if KIND == LOGARITHMIC:
        new = tl.maximum(top, value)
        shift = tl.where(new == float("-inf"), 0.0, new)
        return new, total * tl.exp(top - shift) + tl.exp(value - shift)
    return top, total + value


@triton.jit
def _summed(top, total, AXIS: tl.constexpr, KIND: tl.constexpr):
    """The running sums along an axis; their logarithm where LOGARITHMIC."""
    if KIND == LOGARITHMIC:
        peak = tl.max(top, AXIS)
        shift = tl.where(peak == float("-inf"), 0.0, peak)
        return log_sum(peak, tl.sum(total * tl.exp(top - tl.expand_dims(shift, AXIS)), AXIS))
    return tl.sum(total, AXIS)


@triton.jit
def _scaled(tile, scaling, KIND: tl.constexpr):
    return tile + scaling if KIND == LOGARITHMIC else tile * scaling


@triton.jit
def _matching(total, KIND: tl.constexpr):
    """The scaling that turns a sum into 1."""
    return negated_log(total) if KIND == LOGARITHMIC else 1.0 / total


@triton.jit
def row_scalings(
    gibbs,
    params,
    columns_1,
    columns_2,
    rows_1,
    rows_2,
    apart_rows,
    apart_columns,
    diagonal,
    m,
    n,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    APART: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Both problems' row scalings: what turns the row sums ``K v`` into 1."""
    row = tl.program_id(0) * BM
    i = row + tl.arange(0, BM)
    top_1, sum_1 = _nothing(BM, BN)
    top_2, sum_2 = _nothing(BM, BN)
    for first in tl.range(0, n, BN, num_stages=STAGES):
        j = first + tl.arange(0, BN)
        own = own_entries(apart_rows, apart_columns, i, j, diagonal, m, n, APART)
        tile = gibbs_tile(gibbs, params, own, row, first, m, n, n, KIND, RAW, False, BM, BN)
        top_1, sum_1 = _added(top_1, sum_1, _scaled(tile, tl.load(columns_1 + j, j < n, other=0.0)[None, :], KIND), KIND)
        top_2, sum_2 = _added(top_2, sum_2, _scaled(tile, tl.load(columns_2 + j, j < n, other=0.0)[None, :], KIND), KIND)
    tl.store(rows_1 + i, _matching(_summed(top_1, sum_1, 1, KIND), KIND), i < m)
    tl.store(rows_2 + i, _matching(_summed(top_2, sum_2, 1, KIND), KIND), i < m)


@triton.jit
def column_sums(
    gibbs,
    params,
    rows_1,
    rows_2,
    column_parts,
    apart_rows,
    apart_columns,
    diagonal,
    m,
    n,
    segment,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    APART: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Both problems' column sums ``u K``, of each segment of the block's rows: (segments, 2, n)."""
    column = tl.program_id(0) * BN
    j = column + tl.arange(0, BN)
    top_1, sum_1 = _nothing(BM, BN)
    top_2, sum_2 = _nothing(BM, BN)
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, m)
    for first in tl.range(begin, end, BM, num_stages=STAGES):
        i = first + tl.arange(0, BM)
        own = own_entries(apart_rows, apart_columns, i, j, diagonal, m, n, APART)
        tile = gibbs_tile(gibbs, params, own, first, column, end, n, n, KIND, RAW, False, BM, BN)
        top_1, sum_1 = _added(top_1, sum_1, _scaled(tile, tl.load(rows_1 + i, i < end, other=0.0)[:, None], KIND), KIND)
        top_2, sum_2 = _added(top_2, sum_2, _scaled(tile, tl.load(rows_2 + i, i < end, other=0.0)[:, None], KIND), KIND)
    part = column_parts + tl.program_id(1).to(tl.int64) * 2 * n + j
    tl.store(part, _summed(top_1, sum_1, 0, KIND), j < n)
    tl.store(part + n, _summed(top_2, sum_2, 0, KIND), j < n)


@triton.jit
def update_scalings(
    column_parts,
    sums,
    scalings,
    parts,
    size,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Column sums from their parts, (parts, size), and those of the blocks before; of the LAST the scalings that make them 1.

    Between blocks, and for other ranks, they stand in `sums`.
    """
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    top, total = _nothing(BM, BN)
    for first in range(0, parts, BM):
        part = first + tl.arange(0, BM)
        mask = (part < parts)[:, None] & (j < size)[None, :]
        place = column_parts + part.to(tl.int64)[:, None] * size + j[None, :]
        value = tl.load(place, mask, other=float("-inf") if KIND == LOGARITHMIC else 0.0)
        top, total = _added(top, total, value, KIND)
    sum_ = _summed(top, total, 0, KIND)
    if not FIRST:
        before = tl.load(sums + j, j < size, other=0.0)
        if KIND == LOGARITHMIC:
            top_of_both = tl.maximum(sum_, before)
            shift = tl.where(top_of_both == float("-inf"), 0.0, top_of_both)
            sum_ = log_sum(top_of_both, tl.exp(sum_ - shift) + tl.exp(before - shift))
        else:
            sum_ += before
    if LAST:
        tl.store(scalings + j, _matching(sum_, KIND), j < size)
    else:
        tl.store(sums + j, sum_, j < size)


@triton.jit
def _column_scaling(column_parts, parts, size, j, n, KIND: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The scalings of columns j that make 1 of their sums, from parts that are `size` apart; nothing beyond the edge."""
    nothing = float("-inf") if KIND == LOGARITHMIC else 0.0
    top, total = _nothing(BM, BN)
    for first in range(0, parts, BM):
        part = first + tl.arange(0, BM)
        place = column_parts + part[:, None] * size + j[None, :]
        value = tl.load(place, (part < parts)[:, None] & (j < n)[None, :], other=nothing)
        top, total = _added(top, total, value, KIND)
    return tl.where(j < n, _matching(_summed(top, total, 0, KIND), KIND), nothing)


@triton.jit
def matching_round(
    gibbs,
    params,
    column_parts,
    rows_1,
    rows_2,
    new_parts,
    parts,
    n,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A round of both problems on a small stored matrix (n, n): what `row_scalings` and `column_sums` do, of the programs' rows.

    The columns' scalings come from the last round's parts, (parts, 2, n); in the FIRST from the opening sweep's, (parts, n),
    which are those of the text problem, and the image problem's are 1.
    """
    row = tl.program_id(0) * BM
    i = row + tl.arange(0, BM)
    top_1, sum_1 = _nothing(BM, BN)
    top_2, sum_2 = _nothing(BM, BN)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        tile = gibbs_tile(gibbs, params, False, row, first, n, n, n, KIND, False, False, BM, BN)
        if FIRST:
            top_1, sum_1 = _added(top_1, sum_1, tile, KIND)
            v_2 = _column_scaling(column_parts, parts, n, j, n, KIND, BM, BN)
        else:
            v_1 = _column_scaling(column_parts, parts, 2 * n, j, n, KIND, BM, BN)
            top_1, sum_1 = _added(top_1, sum_1, _scaled(tile, v_1[None, :], KIND), KIND)
            v_2 = _column_scaling(column_parts + n, parts, 2 * n, j, n, KIND, BM, BN)
        top_2, sum_2 = _added(top_2, sum_2, _scaled(tile, v_2[None, :], KIND), KIND)
    u_1 = _matching(_summed(top_1, sum_1, 1, KIND), KIND)
    u_2 = _matching(_summed(top_2, sum_2, 1, KIND), KIND)
    tl.store(rows_1 + i, u_1, i < n)
    tl.store(rows_2 + i, u_2, i < n)
    nothing = float("-inf") if KIND == LOGARITHMIC else 0.0
    u_1 = tl.where(i < n, u_1, nothing)[:, None]
    u_2 = tl.where(i < n, u_2, nothing)[:, None]
    lowest, zeros = _nothing(BM, BN)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        tile = gibbs_tile(gibbs, params, False, row, first, n, n, n, KIND, False, False, BM, BN)
        part = new_parts + tl.program_id(0) * 2 * n + j
        top, total = _added(lowest, zeros, _scaled(tile, u_1, KIND), KIND)
        tl.store(part, _summed(top, total, 0, KIND), j < n)
        top, total = _added(lowest, zeros, _scaled(tile, u_2, KIND), KIND)
        tl.store(part + n, _summed(top, total, 0, KIND), j < n)


ROWS = (
    {"BM": 4, "BN": 1024, "STAGES": 3, "num_warps": 8},
    {"BM": 2, "BN": 2048, "STAGES": 2, "num_warps": 8},
    {"BM": 4, "BN": 256, "STAGES": 2, "num_warps": 4},
)
"""Of programs that own rows; the last for small batches."""

COLUMNS = (
    {"BM": 4, "BN": 512, "STAGES": 3, "num_warps": 4},
    {"BM": 8, "BN": 256, "STAGES": 3, "num_warps": 4},
    {"BM": 16, "BN": 64, "STAGES": 2, "num_warps": 4},
)
"""Of programs that own columns of a segment of the rows; the last for small batches."""

ENCODE = Kernel(encode, LOADED, COMPUTED_WRITTEN, reads=("cosines",), writes=("K",))
ROW_SCALINGS = Kernel(row_scalings, ROWS, reads=("K",))
COLUMN_SUMS = Kernel(column_sums, COLUMNS, reads=("K",))
UPDATE_SCALINGS = Kernel(update_scalings, (MERGE,))
MATCHING_ROUND = Kernel(matching_round, ({"BM": 16, "BN": 128, "num_warps": 4},), reads=("K", "K"))
