"""What half-precision features need around the products with the logits' gradient."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import nearest
from otter_losses.ops.triton.launch import FEATURES, Kernel


@triton.jit
def to_float16(values, peak, out, factor, n, d, row_stride, column_stride, BM: tl.constexpr, BN: tl.constexpr):
    """Values over the power of two next below their peak, in float16; and that power. Exact but for what is 2^-24 of the peak."""
    power = (tl.load(peak).to(tl.float32).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    power = tl.where(power > 0.0, power, 1.0)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        mask = (i < n)[:, None] & (j < d)[None, :]
        value = tl.load(values + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * column_stride, mask, other=0.0)
        tl.store(out + i.to(tl.int64)[:, None] * d + j[None, :], (value.to(tl.float32) / power).to(tl.float16), mask)
    if tl.program_id(0) == 0:
        tl.store(factor, power)


@triton.jit
def feature_gradient(
    product,
    diagonal,
    rounding_residual,
    partners,
    features,
    product_factor,
    factor,
    out,
    inner,
    m,
    d,
    partners_row_stride,
    partners_column_stride,
    features_row_stride,
    features_column_stride,
    gain,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``f (G y)`` from the product without the diagonal and the diagonal itself; and its rows' inner products with `features`.

    Those are without f.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    off = tl.load(product_factor) * gain
    f = tl.load(factor)
    total = tl.zeros((BM,), tl.float32)
    on_diagonal = (tl.load(diagonal + i, i < m, other=0.0) + gain * tl.load(rounding_residual + i, i < m, other=0.0))[:, None]
    row = i.to(tl.int64)[:, None]
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        column = j.to(tl.int64)[None, :]
        mask = (i < m)[:, None] & (j < d)[None, :]
        partner = tl.load(partners + row * partners_row_stride + column * partners_column_stride, mask, other=0.0)
        value = tl.load(product + row * d + column, mask, other=0.0) * off + on_diagonal * partner.to(tl.float32)
        feature = tl.load(features + row * features_row_stride + column * features_column_stride, mask, other=0.0)
        total += tl.sum(value * feature.to(tl.float32), 1)
        tl.store(out + row * d + column, nearest(value * f, out.dtype.element_ty), mask)
    tl.store(inner + i, total, i < m)


TO_FLOAT16 = Kernel(to_float16, (FEATURES,))
FEATURE_GRADIENT = Kernel(feature_gradient, (FEATURES,))
