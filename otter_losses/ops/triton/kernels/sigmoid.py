"""The sigmoid loss and its gradient. See `otter_losses.ops.sigmoid` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import store_diagonal, store_gradient
from otter_losses.ops.triton.kernels.tiles import cosine_tile, meets_diagonal, own_entries, program_tile, wide
from otter_losses.ops.triton.launch import COMPUTED_BESIDE_ANOTHER, COMPUTED_WRITTEN, LOADED, Kernel


@triton.jit
def _negated_logits(cosines, scale, bias, positive):
    """``-l z``: large where the answer to "are i and j a pair?" is wrong."""
    z = cosines * tl.load(scale) + tl.load(bias)
    return tl.where(positive, -z, z)


@triton.jit
def _losses(value, small):
    """``log(1 + exp(value))`` from ``small = exp(-|value|)``."""
    sum_ = 1.0 + small
    # log(1 + small), exact also where the sum rounds to 1.
    log = tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)))
    return tl.maximum(value, 0.0) + log


@triton.jit
def sigmoid_losses(
    left,
    right,
    width,
    scale,
    bias,
    row_groups,
    column_groups,
    row_parts,
    diagonal,
    m,
    n,
    stride,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile's share of the row sums of ``-log sigmoid(l z) = log(1 + exp(-l z))``, (tiles, m)."""
    row_tile, column_tile = program_tile(m, n, BM, BN)
    row, column = row_tile * BM, column_tile * BN
    i = row + tl.arange(0, BM)
    j = column + tl.arange(0, BN)
    cosines = cosine_tile(left, right, width, row, column, m, n, stride, EVEN, COMPUTED, WHOLE, DESCRIPTORS, BM, BN, BK)
    positive = own_entries(row_groups, column_groups, i, j, diagonal, m, n, GROUPS)
    value = _negated_logits(cosines, scale, bias, positive)
    loss = _losses(value, tl.exp(-tl.abs(value)))
    if not EVEN:
        loss = tl.where((i < m)[:, None] & (j < n)[None, :], loss, 0.0)
    tl.store(row_parts + column_tile.to(tl.int64) * m + i, tl.sum(loss, 1), i < m)


@triton.jit
def sigmoid_gradient(
    left,
    right,
    width,
    scale,
    bias,
    row_groups,
    column_groups,
    weight,
    g,
    on_diagonal,
    row_parts,
    column_residual,
    diagonal,
    m,
    n,
    stride,
    plane,
    gain,
    GROUPS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    LOSSES: tl.constexpr,
    PLANES: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)`` of one tile, for ``a = 1`` unless it is WEIGHTED.

    `g` may be the stored block `left`. Sums over the tile's rows, (tiles, m) each: of G; of the LOSSES, where asked; and what
    `store_gradient` says.
    """
    row_tile, column_tile = program_tile(m, n, BM, BN)
    row, column = row_tile * BM, column_tile * BN
    i = row + tl.arange(0, BM)
    j = column + tl.arange(0, BN)
    cosines = cosine_tile(left, right, width, row, column, m, n, stride, EVEN, COMPUTED, WHOLE, DESCRIPTORS, BM, BN, BK)
    positive = own_entries(row_groups, column_groups, i, j, diagonal, m, n, GROUPS)
    value = _negated_logits(cosines, scale, bias, positive)
    small = tl.exp(-tl.abs(value))
    part = row_parts + column_tile.to(tl.int64) * m + i
    parts = wide(tl.cdiv(n, BN)) * m
    if LOSSES:
        loss = _losses(value, small)
        if not EVEN:
            loss = tl.where((i < m)[:, None] & (j < n)[None, :], loss, 0.0)
        tl.store(part + parts, tl.sum(loss, 1), i < m)
    value = tl.where(value > 0.0, 1.0, small) / (1.0 + small)
    if WEIGHTED:
        value *= tl.load(weight + i, i < m, other=0.0)[:, None]
    if not EVEN:
        value = tl.where((i < m)[:, None] & (j < n)[None, :], value, 0.0)
    value = tl.where(positive, -value, value)
    tl.store(part, tl.sum(value, 1), i < m)
    if PLANES > 0 and meets_diagonal(row, column, diagonal, BM, BN):
        store_diagonal(value, on_diagonal, i, j, m, n, diagonal)
        value = tl.where((i + diagonal)[:, None] == j[None, :], 0.0, value)
    residual: tl.constexpr = 2 if LOSSES else 1
    store_gradient(
        value,
        i,
        j,
        m=m,
        n=n,
        plane=plane,
        gain=gain,
        g=g,
        row_residual=part + residual * parts,
        column_residual=column_residual + row_tile.to(tl.int64) * n + j,
        EVEN=EVEN,
        PLANES=PLANES,
    )


_TILES = (COMPUTED_WRITTEN[0], *COMPUTED_BESIDE_ANOTHER)
"""That leave room for a logarithm."""

LOSSES = Kernel(sigmoid_losses, LOADED, _TILES, reads=("cosines",))
GRADIENT = Kernel(sigmoid_gradient, LOADED, _TILES, reads=("cosines",), writes=("G",))
