"""Features as half-precision units multiply them, and their gradients from products with that of the logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.kernels import features as kernels
from otter_losses.ops.triton.launch import FEATURES, launch, tiles

GAIN = 2.0**13
"""Of a logits' gradient in float16: its entries off the diagonal are at most 4, and small ones stay above the least float16."""

MOST_PEAKS = 512
"""Programs that look for the greatest feature: enough for a device, and every program that splits reads all they found."""

LIFT = float(kernels.LIFT.value)


class Split(NamedTuple):
    """x (b, d) and y (n, d) over powers of two, in one plane of float16 or two.

    Attributes:
        x, y: themselves; or, of parts x' + x'' and y' + y'', ``[x', x', x'']`` and ``[y', y'', y']``, whose product is theirs.
        powers: what was divided by, (2,).
        scale: what products are multiplied with to be logits, 0-D.
        planes: 1 or 2.
    """

    x: Tensor
    y: Tensor
    powers: Tensor
    scale: Tensor
    planes: int

    @property
    def x_parts(self) -> tuple[Tensor, ...]:
        width = self.x.shape[1] // 3
        return (self.x,) if self.planes == 1 else (self.x[:, :width], self.x[:, 2 * width :])

    @property
    def y_parts(self) -> tuple[Tensor, ...]:
        width = self.y.shape[1] // 3
        return (self.y,) if self.planes == 1 else (self.y[:, :width], self.y[:, width : 2 * width])


def split(x: Tensor, y: Tensor, scale: Tensor, planes: int, reduce: Reduction) -> Split:
    """Local features x and all y. All ranks divide their x by the same power."""
    b, d = x.shape
    n = len(y)
    width = (2 * planes - 1) * d
    programs = tiles(max(b, n), FEATURES["BM"])
    peaks = scale.new_empty(min(programs, MOST_PEAKS), 2)
    strides = {"x_row_stride": x.stride(0), "x_stride": x.stride(1), "y_row_stride": y.stride(0), "y_stride": y.stride(1)}
    launch(kernels.SPLIT_PEAKS, (len(peaks),), kernels.SPLIT_PEAKS.tiles[0], x=x, y=y, out=peaks, b=b, n=n, d=d, **strides)
    if reduce.is_distributed:
        peaks = reduce.all_reduce_max(peaks.amax(0))[None]
    halves = [x.new_empty(len(each), width, dtype=torch.float16) for each in (x, y)]
    powers, product_scale = scale.new_empty(2), torch.empty_like(scale)
    launch(
        kernels.SPLIT,
        (programs, 2),
        FEATURES,
        x=x,
        y=y,
        peaks=peaks,
        x_out=halves[0],
        y_out=halves[1],
        powers=powers,
        scale=scale,
        product_scale=product_scale,
        b=b,
        n=n,
        d=d,
        peak_count=len(peaks),
        **strides,
        PLANES=planes,
    )
    return Split(halves[0], halves[1], powers, product_scale, planes)


def feature_gradient(
    product: Tensor,
    diagonal: Tensor,
    residual: Tensor | None,
    partners: Tensor,
    features: Tensor,
    power: Tensor,
    factor: Tensor,
    magnitude: Tensor,
    out: Tensor,
    inner: Tensor,
) -> None:
    """``f (G y)`` from the product without the diagonal and the diagonal's own, for f the factor times the magnitude.

    Args:
        product: (m, d), over the power and times `GAIN`.
        diagonal, residual: of G, (m,); what rounding took from a row is given to its diagonal, times `GAIN`.
        partners: the features that the diagonal meets, (m, d).
        features: those whose gradient it is, (m, d).
        power, factor, magnitude: 0-D.
        out: where it goes, (m, d), in its dtype.
        inner: where its inner products with the features go, without f, (m,).
    """
    m, d = product.shape
    launch(
        kernels.FEATURE_GRADIENT,
        (tiles(m, FEATURES["BM"]),),
        FEATURES,
        product=product,
        diagonal=diagonal,
        residual=diagonal if residual is None else residual,
        partners=partners,
        features=features,
        power=power,
        factor=factor,
        magnitude=magnitude,
        out=out,
        inner=inner,
        m=m,
        d=d,
        partners_row_stride=partners.stride(0),
        partners_stride=partners.stride(1),
        features_row_stride=features.stride(0),
        features_stride=features.stride(1),
        gain=1 / GAIN,
        RESIDUAL=residual is not None,
    )
