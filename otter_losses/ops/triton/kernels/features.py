"""What half-precision features need around the products."""

import triton
import triton.language as tl


@triton.jit
def nearest(value, DTYPE: tl.constexpr):
    """Rounded to the nearest of another float type, ties to even, as the hardware does; the interpreter truncates bfloat16."""
    if tl.bfloat16 == DTYPE:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(DTYPE)


@triton.jit
def apart(value, own, mask, gain, row_residual, column_residual, i, j, m, n):
    """Off the diagonal, times the gain, in float16; what the rounding loses, added up over the tile's rows and its columns.

    Given to the diagonal, the losses weigh ``y_j - y_i`` instead of ``y_j``: duplicates and a direction common to all cancel.
    """
    value = tl.where(mask & (own == 0), value * gain, 0.0)
    rounded = value.to(tl.float16)
    lost = value - rounded.to(tl.float32)
    tl.store(row_residual + tl.program_id(1) * m + i, tl.sum(lost, 1), i < m)
    tl.store(column_residual + tl.program_id(0) * n + j, tl.sum(lost, 0), j < n)
    return rounded


@triton.jit
def narrow(values, peak, out, factor, n, d, row_stride, column_stride, BM: tl.constexpr, BN: tl.constexpr):
    """Values over the power of two next below their peak, in float16; and that power. Exact but for what is 2^-24 of the peak."""
    octave = (tl.load(peak).to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    octave = tl.where(octave > 0.0, octave, 1.0)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        mask = (i < n)[:, None] & (j < d)[None, :]
        value = tl.load(values + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * column_stride, mask, other=0.0)
        tl.store(out + i.to(tl.int64)[:, None] * d + j[None, :], (value.to(tl.float32) / octave).to(tl.float16), mask)
    if tl.program_id(0) == 0:
        tl.store(factor, octave)


@triton.jit
def feature_gradient(
    product,
    diagonal,
    residual,
    other,
    own,
    product_factor,
    factor,
    out,
    inner,
    m,
    d,
    other_row_stride,
    other_column_stride,
    own_row_stride,
    own_column_stride,
    gain,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``G y`` from its product off the diagonal and the diagonal's own; scaled in `out`, and its inner product with `own`."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    off = tl.load(product_factor) * gain
    f = tl.load(factor)
    total = tl.zeros((BM,), tl.float32)
    on_diagonal = (tl.load(diagonal + i, i < m, other=0.0) + gain * tl.load(residual + i, i < m, other=0.0))[:, None]
    row = i.to(tl.int64)[:, None]
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        column = j.to(tl.int64)[None, :]
        mask = (i < m)[:, None] & (j < d)[None, :]
        partner = tl.load(other + row * other_row_stride + column * other_column_stride, mask, other=0.0).to(tl.float32)
        value = tl.load(product + row * d + column, mask, other=0.0) * off + on_diagonal * partner
        mine = tl.load(own + row * own_row_stride + column * own_column_stride, mask, other=0.0).to(tl.float32)
        total += tl.sum(value * mine, 1)
        tl.store(out + row * d + column, nearest(value * f, out.dtype.element_ty), mask)
    tl.store(inner + i, total, i < m)
