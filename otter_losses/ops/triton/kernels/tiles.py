"""Where a tile of an N x N matrix comes from: a stored block, or the product of features; of cosines, and of the Gibbs kernel.

The Gibbs kernel ``K = exp(L - shift)`` has three forms. PLAIN holds ``K`` in float32, LOGARITHMIC holds ``L`` in float32, for
potentials that add where scalings would multiply. CODES holds ``log K`` in 16 bits, in equal steps over its range: half the
memory of float32, and an error of K of at most half a step (3e-4 at a spread of 40), where K in bfloat16 would have 4e-3 and L
in bfloat16 more than 1e-1. RAW is a product that has still to become L: times ``1 / epsilon``, its diagonal lowered. The first
entries of `problem.Scalar` stand behind `params`.
"""

import os

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
LOGARITHMIC = tl.constexpr(1)
CODES = tl.constexpr(2)
LAST_CODE = tl.constexpr(65535)
OCTAVES = tl.constexpr(1.4426950408889634)
"""In an exponent of e."""

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""On numpy, which has no bfloat16."""


@triton.jit
def wide(number):
    """In 64 bits, also where a launch takes a 1 for a constant."""
    return tl.full((), 1, tl.int64) * number


@triton.jit
def program_tile(m, n, BM: tl.constexpr, BN: tl.constexpr):
    """Row and column of tiles that this program owns, of a matrix (m, n).

    Programs that run together own eight rows of tiles, a column at a time: what they multiply stays in the cache.
    """
    rows, columns = tl.cdiv(m, BM), tl.cdiv(n, BN)
    group = tl.program_id(0) // (8 * columns) * 8
    height = tl.minimum(rows - group, 8)
    within = tl.program_id(0) % (8 * columns)
    return group + within % height, within // height


@triton.jit
def product_tile(
    left,
    right,
    width,
    row,
    column,
    m,
    n,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """``left_i . right_j`` of contiguous features (., width), from a row and a column on, in float32; zeros beyond m and n.

    EVEN: the tiles end where the matrix does. WHOLE: the width is a multiple of BK. DESCRIPTORS: the features come as tensor
    descriptors, which the copy engine reads, zeros beyond their edges; else as pointers.
    """
    total = tl.zeros((BM, BN), tl.float32)
    if DESCRIPTORS:
        for first in range(0, width, BK):
            a = left.load([row, first])
            b = right.load([column, first])
            if INTERPRETED:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            total = tl.dot(a, b.T, total)
    else:
        k = tl.arange(0, BK)
        i = row + tl.arange(0, BM)
        j = column + tl.arange(0, BN)
        rows = left + i.to(tl.int64)[:, None] * width + k[None, :]
        columns = right + j.to(tl.int64)[None, :] * width + k[:, None]
        for first in range(0, width, BK):
            if EVEN and WHOLE:
                a = tl.load(rows)
                b = tl.load(columns)
            else:
                a = tl.load(rows, (i < m)[:, None] & (first + k < width)[None, :], other=0.0)
                b = tl.load(columns, (j < n)[None, :] & (first + k < width)[:, None], other=0.0)
            if INTERPRETED:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision="ieee")
            rows += BK
            columns += BK
    return total


@triton.jit
def cosine_tile(
    left,
    right,
    width,
    row,
    column,
    m,
    n,
    stride,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of ``x y^T``: computed from the block's features `left` and `right`, or loaded from the stored block `left`."""
    if COMPUTED:
        tile = product_tile(left, right, width, row, column, m, n, EVEN, WHOLE, DESCRIPTORS, BM, BN, BK)
    else:
        i = row + tl.arange(0, BM)
        j = column + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        tile = tl.load(left + i.to(tl.int64)[:, None] * stride + j[None, :], mask, other=0.0)
    return tile


@triton.jit
def meets_diagonal(row, column, diagonal, BM: tl.constexpr, BN: tl.constexpr):
    """Whether a tile has entries of the given pairs, whose column is their row plus `diagonal`."""
    return (row + diagonal < column + BN) & (column < row + diagonal + BM)


@triton.jit
def own_entries(row_groups, column_groups, i, j, diagonal, m, n, GROUPS: tl.constexpr):
    """Which entries of a tile are of the given pairs; in GROUPS of pairs of one id, that of every row and column."""
    if GROUPS:
        own = tl.load(row_groups + i, i < m, other=0)[:, None] == tl.load(column_groups + j, j < n, other=0)[None, :]
    else:
        own = (i + diagonal)[:, None] == j[None, :]
    return own


@triton.jit
def teacher_logits(product, params, own, mask):
    """A tile of ``L`` from that of its product, lowered where it is of own entries; nothing beyond the edge."""
    value = product * tl.load(params)
    value = tl.where(own, value - tl.load(params + 3), value)
    return tl.where(mask, value, float("-inf"))


@triton.jit
def code_of(value, params):
    """The code of a logit, 1 to 65535 up to the shift; 0 is nothing."""
    code = tl.floor((value - tl.load(params + 1)) * OCTAVES / tl.load(params + 2) + (LAST_CODE + 0.5))
    code = tl.minimum(tl.maximum(code, 1.0), LAST_CODE + 0.0)
    return tl.where(value == float("-inf"), 0, code.to(tl.int32))


@triton.jit
def decoded(code, params):
    return tl.where(code > 0, tl.exp2((code - LAST_CODE).to(tl.float32) * tl.load(params + 2)), 0.0)


@triton.jit
def gibbs_tile(
    gibbs,
    params,
    own,
    row,
    column,
    m,
    n,
    stride,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A tile of ``K``, or of ``L`` where LOGARITHMIC, from a stored block of it or, where RAW, of its product.

    `own` entries are lowered in a product; in what is stored they are already.
    DESCRIBED: codes come as a tensor descriptor; what it reads beyond the edges is finite, but not nothing.
    """
    if DESCRIBED:
        tile = decoded(gibbs.load([row, column]).to(tl.int32) + 32768, params)
    else:
        i = row + tl.arange(0, BM)
        j = column + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        place = gibbs + i.to(tl.int64)[:, None] * stride + j[None, :]
        if RAW:
            tile = teacher_logits(tl.load(place, mask, other=0.0), params, own, mask)
            if KIND != LOGARITHMIC:
                tile = tl.exp(tile - tl.load(params + 1))
        elif KIND == CODES:
            tile = decoded(tl.load(place, mask, other=-32768).to(tl.int32) + 32768, params)
        elif KIND == LOGARITHMIC:
            tile = tl.load(place, mask, other=float("-inf"))
        else:
            tile = tl.load(place, mask, other=0.0)
    return tile
