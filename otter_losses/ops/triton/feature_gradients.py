"""``dx = f G y``, ``dy = f G^T x`` and ``<x, G y>`` from row blocks of the logits' gradient as they come."""

from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.memory import wanted
from otter_losses.ops.problem import Student
from otter_losses.ops.products import HALVES, add_product, product
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.half import feature_gradient, magnitude, to_float16


class GradientBlock(NamedTuple):
    """A row block of G, as a kernel writes it.

    Attributes:
        g: (m, N), float32; or, of half-precision features, float16, times `half.GAIN` and without its diagonal.
        diagonal: that diagonal, (m,).
        row_residual, column_residual: rounding residuals of float16, summed over the tiles' columns, (tiles, m), and rows,
            (tiles, N).
    """

    g: Tensor
    diagonal: Tensor
    row_residual: Tensor
    column_residual: Tensor


class FeatureGradients:
    """Products at the matrix units' full rate also of half-precision features, sums in float32.

    There G and the features it meets are float16: an error a tenth of what rounding the result costs.
    """

    def __init__(
        self, student: Student, rows: slice, factor: Tensor, wants_image: bool, wants_text: bool, reduce: Reduction
    ) -> None:
        self.x, self.y, self.text_features = student.image_features, student.all_text_features, student.text_features
        self.rows, self.factor, self.reduce = rows, factor, reduce
        self.wants_image, self.wants_text = wants_image, wants_text
        self.is_half = self.x.dtype in HALVES
        self.gradient_dtype = student.gradient_dtype
        self.dx = wanted(self.x, wants_image, self.gradient_dtype)
        self.dy_total = factor.new_empty(self.y.shape if wants_text else 0)
        if self.is_half:
            self.diagonal, self.row_residual, self.inner = factor.new_empty(3, len(self.x))
            self.column_residual = factor.new_zeros(len(self.y))
            if wants_image:
                self.half_y, self.y_power = to_float16(self.y)
            if wants_text:
                self.x_magnitude = reduce.all_reduce_max(magnitude(self.x))

    def block(self, rows: slice, g: Tensor, grid: tuple[int, int]) -> GradientBlock:
        """Memory for a row block of tiles in a grid, its G in `g`."""
        if not self.is_half:
            return GradientBlock(g, self.factor, self.factor, self.factor)
        m, n = g.shape
        residuals = self.factor.new_empty(grid[1], m), self.factor.new_empty(grid[0], n)
        return GradientBlock(g, self.diagonal[rows], *residuals)

    def space(self, rows: int) -> Tensor:
        """Memory for G of a block of so many rows."""
        return self.factor.new_empty(rows, len(self.y), dtype=torch.float16 if self.is_half else torch.float32)

    def add(self, block: GradientBlock, rows: slice) -> None:
        """A row block, as a kernel wrote it."""
        x = self.x[rows]
        if self.is_half:
            torch.sum(block.row_residual, 0, out=self.row_residual[rows])
            self.column_residual += block.column_residual.sum(0)
        if self.wants_image:
            self._write_image_gradient(block.g, rows)
        if self.wants_text:
            if self.is_half:
                x, self.x_power = to_float16(x, self.x_magnitude)
            add_product(self.dy_total, block.g.T, x, first=rows.start == 0)

    def _write_image_gradient(self, g: Tensor, rows: slice) -> None:
        if not self.is_half:
            torch.mm(g, self.y, out=self.dx[rows])
            return
        whole_rows = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
        feature_gradient(
            product=product(g, self.half_y, self.factor.new_empty(len(g), self.y.shape[1])),
            product_factor=self.y_power,
            diagonal=self.diagonal[rows],
            rounding_residual=self.row_residual[rows],
            partners=self.y[whole_rows],
            features=self.x[rows],
            factor=self.factor,
            out=self.dx[rows],
            inner=self.inner[rows],
        )

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both gradients, of this rank's rows, and ``<x, G y>``, the sum of which over the ranks is that of the batch."""
        if not self.is_half:
            inner = (self.x * self.dx if self.wants_image else self.y * self.dy_total).sum()
            dy = self.reduce.reduce_scatter(self.dy_total.mul_(self.factor)) if self.wants_text else self.dy_total
            return self.dx.mul_(self.factor), dy, inner
        dy = wanted(self.x, self.wants_text, self.gradient_dtype)
        if self.wants_text:
            inner = torch.empty_like(self.inner)
            feature_gradient(
                product=self.reduce.reduce_scatter(self.dy_total),
                product_factor=self.x_power,
                diagonal=self.diagonal,
                rounding_residual=self.reduce.reduce_scatter(self.column_residual),
                partners=self.x,
                features=self.text_features,
                factor=self.factor,
                out=dy,
                inner=inner,
            )
            self.inner = self.inner if self.wants_image else inner
        return self.dx, dy, self.inner.sum()
