"""The sigmoid loss and its gradient. See `otter_losses.ops.sigmoid` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.features import apart


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
def sigmoid_gradient(
    cosines,
    scale,
    bias,
    weight,
    g,
    diagonal,
    row_residual,
    column_residual,
    row_parts,
    start,
    m,
    n,
    gain,
    APART: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)``, as in `logits_gradient`, and its sums over a tile's rows, (tiles, m)."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    mask = (i < m)[:, None] & (j < n)[None, :]
    unlikely = _unlikely(cosines, scale, bias, i, j, start, mask, n)
    value = tl.load(weight + i, i < m, other=0.0)[:, None] / (1.0 + tl.exp(-unlikely))
    own = (i + start)[:, None] == j[None, :]
    value = tl.where(own, -value, value)
    tl.store(row_parts + tl.program_id(1) * m + i, tl.sum(tl.where(mask, value, 0.0), 1), i < m)
    if APART:
        holds_own = (i < m) & (i + start >= tl.program_id(1) * BN) & (i + start < (tl.program_id(1) + 1) * BN)
        tl.store(diagonal + i, tl.sum(tl.where(own, value, 0.0), 1), holds_own)
        value = apart(value, own, mask, gain, row_residual, column_residual, i, j, m, n)
    tl.store(g + i.to(tl.int64)[:, None] * n + j[None, :], value, mask)
