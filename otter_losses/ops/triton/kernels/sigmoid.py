"""The sigmoid loss and its gradient. See `otter_losses.ops.sigmoid` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import store_gradient
from otter_losses.ops.triton.kernels.tiles import cosine_tile
from otter_losses.ops.triton.launch import TILES, TILES_COMPUTED, Kernel


@triton.jit
def _negated_logits(cosines, scale, bias, on_diagonal):
    """``-l z``: large where the answer to "are i and j a pair?" is wrong."""
    z = cosines * tl.load(scale) + tl.load(bias)
    return tl.where(on_diagonal, -z, z)


@triton.jit
def sigmoid_losses(
    left,
    right,
    width,
    scale,
    bias,
    row_parts,
    row_offset,
    m,
    n,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile's share of the row sums of ``-log sigmoid(l z) = log(1 + exp(-l z))``, (tiles, m)."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    cosines = cosine_tile(left, right, width, i, j, m=m, n=n, mask=mask, COMPUTED=COMPUTED, WHOLE=WHOLE, BM=BM, BN=BN, BK=BK)
    value = _negated_logits(cosines, scale, bias, (i + row_offset)[:, None] == j[None, :])
    small = tl.exp(-tl.abs(value))
    sum_ = 1.0 + small
    # log(1 + small), exact also where the sum rounds to 1.
    log = tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / tl.where(sum_ == 1.0, 1.0, sum_ - 1.0)))
    loss = tl.where(mask, tl.maximum(value, 0.0) + log, 0.0)
    tl.store(row_parts + tl.program_id(1) * m + i, tl.sum(loss, 1), i < m)


@triton.jit
def sigmoid_gradient(
    left,
    right,
    width,
    scale,
    bias,
    weight,
    g,
    diagonal,
    row_residual,
    column_residual,
    row_parts,
    row_offset,
    m,
    n,
    gain,
    HALF: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)`` of one tile, and its sums over the tile's rows, (tiles, m)."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    on_diagonal = (i + row_offset)[:, None] == j[None, :]
    cosines = cosine_tile(left, right, width, i, j, m=m, n=n, mask=mask, COMPUTED=COMPUTED, WHOLE=WHOLE, BM=BM, BN=BN, BK=BK)
    value = _negated_logits(cosines, scale, bias, on_diagonal)
    value = tl.load(weight + i, i < m, other=0.0)[:, None] / (1.0 + tl.exp(-value))
    value = tl.where(on_diagonal, -value, value)
    tl.store(row_parts + tl.program_id(1) * m + i, tl.sum(tl.where(mask, value, 0.0), 1), i < m)
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


LOSSES = Kernel(sigmoid_losses, TILES, TILES_COMPUTED, reads=("cosines",))
GRADIENT = Kernel(sigmoid_gradient, TILES, TILES_COMPUTED, reads=("cosines",), writes=("G",))
