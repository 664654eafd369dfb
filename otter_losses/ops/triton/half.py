"""Half-precision features in the range of float16, for products with the logits' gradient."""

import torch
from torch import Tensor

from otter_losses.ops.triton.kernels import half as kernels
from otter_losses.ops.triton.launch import FEATURES, launch, tiles

GAIN = 2.0**13
"""Of a logits' gradient in float16: its entries off the diagonal are at most 4, and small ones stay above the least float16."""


def to_float16(values: Tensor, greatest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features in float16, over a power of two that brings them, or others as great, into its range; and that power, 0-D."""
    out, power = values.new_empty(values.shape, dtype=torch.float16), values.new_empty((), dtype=torch.float32)
    n, d = values.shape
    row_stride, column_stride = values.stride()
    launch(
        kernels.TO_FLOAT16,
        (tiles(n, FEATURES["BM"]),),
        FEATURES,
        values=values,
        peak=magnitude(values) if greatest is None else greatest,
        out=out,
        factor=power,
        n=n,
        d=d,
        row_stride=row_stride,
        column_stride=column_stride,
    )
    return out, power


def magnitude(values: Tensor) -> Tensor:
    """The greatest, 0-D."""
    peak: Tensor = torch.linalg.vector_norm(values, torch.inf)
    return peak


def feature_gradient(
    product: Tensor,
    product_factor: Tensor,
    diagonal: Tensor,
    rounding_residual: Tensor,
    partners: Tensor,
    features: Tensor,
    factor: Tensor,
    out: Tensor,
    inner: Tensor,
) -> None:
    """``f (G y)`` from the product without the diagonal and the diagonal's own.

    Args:
        product: (m, d), over `product_factor` and times `GAIN`.
        diagonal, rounding_residual: of G, (m,); what rounding took from a row is given to its diagonal, times `GAIN`.
        partners: the features that the diagonal meets, (m, d).
        features: those whose gradient it is, (m, d).
        factor: f, 0-D.
        out: where it goes, (m, d), in the features' dtype.
        inner: where its inner products with the features go, without f, (m,).
    """
    m, d = product.shape
    launch(
        kernels.FEATURE_GRADIENT,
        (tiles(m, FEATURES["BM"]),),
        FEATURES,
        product=product,
        diagonal=diagonal,
        rounding_residual=rounding_residual,
        partners=partners,
        features=features,
        product_factor=product_factor,
        factor=factor,
        out=out,
        inner=inner,
        m=m,
        d=d,
        partners_row_stride=partners.stride(0),
        partners_column_stride=partners.stride(1),
        features_row_stride=features.stride(0),
        features_column_stride=features.stride(1),
        gain=1 / GAIN,
    )
