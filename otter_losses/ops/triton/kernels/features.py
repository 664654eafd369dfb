"""What features become for products on half-precision units, and what becomes of products with the logits' gradient."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import nearest
from otter_losses.ops.triton.launch import FEATURES, MERGE, VECTOR, Kernel

LIFT = tl.constexpr(4096.0)
"""To what features in float16 are lifted: between it and twice it is the greatest, and what two of them leave is far below 1."""


@triton.jit
def split_peaks(x, y, out, b, n, d, x_row_stride, x_stride, y_row_stride, y_stride, BM: tl.constexpr, BN: tl.constexpr):
    """Each program's greatest magnitude of its rows of x (b, d) and of y (n, d): (programs, 2)."""
    tl.store(out + 2 * tl.program_id(0), _peak(x, b, d, x_row_stride, x_stride, BM, BN))
    tl.store(out + 2 * tl.program_id(0) + 1, _peak(y, n, d, y_row_stride, y_stride, BM, BN))


@triton.jit
def _peak(values, n, d, row_stride, stride, BM: tl.constexpr, BN: tl.constexpr):
    greatest = tl.zeros((BM, BN), tl.float32)
    for row in range(tl.program_id(0) * BM, n, tl.num_programs(0) * BM):
        i = row + tl.arange(0, BM)
        for first in range(0, d, BN):
            j = first + tl.arange(0, BN)
            mask = (i < n)[:, None] & (j < d)[None, :]
            place = values + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * stride
            greatest = tl.maximum(greatest, tl.abs(tl.load(place, mask, other=0.0).to(tl.float32)))
    return tl.max(tl.max(greatest, 1), 0)


@triton.jit
def split(
    x,
    y,
    peaks,
    x_out,
    y_out,
    powers,
    scale,
    product_scale,
    b,
    n,
    d,
    peak_count,
    x_row_stride,
    x_stride,
    y_row_stride,
    y_stride,
    PLANES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """x and y over powers of two, in float16: themselves, or as parts x' + x'' and y' + y'' beside each other.

    Of these ``[x', x', x''] [y', y'', y']^T`` leaves out ``x'' y''``: 2^-22 of the product. Programs (., 0) split x, (., 1) y.
    Writes the powers, (2,), and what such products are multiplied with instead of the scale.
    """
    p = tl.arange(0, 1024)
    x_peak = tl.zeros((1024,), tl.float32)
    y_peak = tl.zeros((1024,), tl.float32)
    for first in range(0, peak_count, 1024):
        x_peak = tl.maximum(x_peak, tl.load(peaks + 2 * (first + p), first + p < peak_count, other=0.0))
        y_peak = tl.maximum(y_peak, tl.load(peaks + 2 * (first + p) + 1, first + p < peak_count, other=0.0))
    x_below = _power_below(tl.max(x_peak, 0))
    y_below = _power_below(tl.max(y_peak, 0))
    x_power = x_below * (1 / LIFT)
    y_power = y_below * (1 / LIFT)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    if tl.program_id(1) == 0:
        _split(x, x_out, _inverse(x_below) * LIFT, i, b, d, x_row_stride, x_stride, PLANES, False, BN)
        if tl.program_id(0) == 0:
            tl.store(powers, x_power)
            tl.store(powers + 1, y_power)
            tl.store(product_scale, tl.load(scale) * x_power * y_power)
    else:
        _split(y, y_out, _inverse(y_below) * LIFT, i, n, d, y_row_stride, y_stride, PLANES, True, BN)


@triton.jit
def _power_below(peak):
    """The power of two next below."""
    power = (peak.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(power > 0.0, power, 1.0)


@triton.jit
def _inverse(power):
    """Of a power of two, from its exponent: exact, which a division on the device need not be."""
    return (0x7F000000 - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _split(values, out, inverse, i, n, d, row_stride, stride, PLANES: tl.constexpr, RIGHT: tl.constexpr, BN: tl.constexpr):
    width: tl.constexpr = 3 if PLANES == 2 else 1
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        mask = (i < n)[:, None] & (j < d)[None, :]
        value = tl.load(values + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * stride, mask, other=0.0)
        store_split(
            value.to(tl.float32) * inverse, out + i.to(tl.int64)[:, None] * (width * d) + j[None, :], d, mask, PLANES, RIGHT
        )


@triton.jit
def store_split(value, out, d, mask, PLANES: tl.constexpr, RIGHT: tl.constexpr):
    """A value's parts, as `split` says, each d behind the one before."""
    first = value.to(tl.float16)
    tl.store(out, first, mask)
    if PLANES == 2:
        second = (value - first.to(tl.float32)).to(tl.float16)
        tl.store(out + d, second if RIGHT else first, mask)
        tl.store(out + 2 * d, first if RIGHT else second, mask)


@triton.jit
def merge_sums(
    row_parts,
    column_parts,
    rows,
    columns,
    row_tiles,
    column_tiles,
    m,
    n,
    stride,
    ROWS: tl.constexpr,
    FIRST_COLUMNS: tl.constexpr,
    FIRST_ROWS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Sums over tiles, (ROWS, tiles, m) to (ROWS, m), `stride` apart, and (tiles, n) to (n,); added to what other blocks gave.

    Programs (., k) have the rows' k-th sum, the last of them that of the columns, if any. A block of the FIRST_COLUMNS opens the
    rows' sums, one of the FIRST_ROWS the columns'.
    """
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.program_id(1)
    if k < ROWS:
        part = k.to(tl.int64) * row_tiles * m
        _add_parts(row_parts + part, rows + k.to(tl.int64) * stride, row_tiles, m, i, FIRST_COLUMNS, BM, BN)
    else:
        _add_parts(column_parts, columns, column_tiles, n, i, FIRST_ROWS, BM, BN)


@triton.jit
def _add_parts(parts, out, tiles, n, i, FIRST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    total = tl.zeros((BN,), tl.float32)
    for first in range(0, tiles, BM):
        tile = first + tl.arange(0, BM)
        place = parts + tile.to(tl.int64)[:, None] * n + i[None, :]
        total += tl.sum(tl.load(place, (tile < tiles)[:, None] & (i < n)[None, :], other=0.0), 0)
    if not FIRST:
        total += tl.load(out + i, i < n, other=0.0)
    tl.store(out + i, total, i < n)


@triton.jit
def feature_gradient(
    product,
    diagonal,
    residual,
    partners,
    features,
    power,
    factor,
    magnitude,
    out,
    inner,
    m,
    d,
    partners_row_stride,
    partners_stride,
    features_row_stride,
    features_stride,
    gain,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``f (G y)`` from the product without the diagonal and the diagonal itself; and its rows' inner products with `features`.

    f is the factor times the magnitude; the inner products are without it. The product is over the power, and times the gain's
    inverse.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    off = tl.load(power) * gain
    f = tl.load(factor) * tl.load(magnitude)
    total = tl.zeros((BM,), tl.float32)
    on_diagonal = tl.load(diagonal + i, i < m, other=0.0)
    if RESIDUAL:
        on_diagonal += gain * tl.load(residual + i, i < m, other=0.0)
    row = i.to(tl.int64)[:, None]
    for first in range(0, d, BN):
        j = first + tl.arange(0, BN)
        column = j.to(tl.int64)[None, :]
        mask = (i < m)[:, None] & (j < d)[None, :]
        partner = tl.load(partners + row * partners_row_stride + column * partners_stride, mask, other=0.0)
        value = tl.load(product + row * d + column, mask, other=0.0) * off + on_diagonal[:, None] * partner.to(tl.float32)
        feature = tl.load(features + row * features_row_stride + column * features_stride, mask, other=0.0)
        total += tl.sum(value * feature.to(tl.float32), 1)
        tl.store(out + row * d + column, nearest(value * f, out.dtype.element_ty), mask)
    tl.store(inner + i, total, i < m)


@triton.jit
def totals(rows, magnitude, first, second, third, b, BN: tl.constexpr):
    """Sums of up to three rows (b,), times the magnitude, a program each; every one into its own memory."""
    row = tl.program_id(0)
    i = tl.arange(0, BN)
    total = tl.zeros((BN,), tl.float32)
    for start in range(0, b, BN):
        total += tl.load(rows + row.to(tl.int64) * b + start + i, start + i < b, other=0.0)
    sum_ = tl.sum(total, 0) * tl.load(magnitude)
    if row == 0:
        tl.store(first, sum_)
    elif row == 1:
        tl.store(second, sum_)
    else:
        tl.store(third, sum_)


SPLIT_PEAKS = Kernel(split_peaks, ({**FEATURES, "BN": 128},))
SPLIT = Kernel(split, (FEATURES,))
MERGE_SUMS = Kernel(merge_sums, (MERGE,))
FEATURE_GRADIENT = Kernel(feature_gradient, (FEATURES,))
TOTALS = Kernel(totals, (VECTOR,))
