"""``dx = f G y``, ``dy = f G^T x`` and ``<x, G y>`` from blocks of the logits' gradient as they come."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops import memory
from otter_losses.ops.memory import wanted
from otter_losses.ops.problem import Student
from otter_losses.ops.products import add_product
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.features import Split, feature_gradient
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.kernels import features as kernels
from otter_losses.ops.triton.launch import MERGE, VECTOR, launch, tiles


class GradientBlock(NamedTuple):
    """A block of G, as a kernel writes it.

    Attributes:
        g: (1, m, n) in float32; or (planes, m, n) in float16, times `features.GAIN` and without its diagonal.
        on_diagonal: that diagonal, (m,).
        row_parts: sums over the tiles' columns, (sums, tiles, m), the last those of the rounding residuals of one plane.
        column_residual: those over the tiles' rows, (tiles, n).
    """

    g: Tensor
    on_diagonal: Tensor
    row_parts: Tensor
    column_residual: Tensor


class FeatureGradients:
    """Products on half-precision units, sums in float32: of half-precision features G is one plane of float16, of float32 two.

    One plane's error is a tenth of what rounding the result to half precision costs; two hold what float32 does. Without a split
    G and its products are float32.
    """

    def __init__(
        self,
        student: Student,
        rows: slice,
        split: Split | None,
        magnitude: Tensor,
        wants_image: bool,
        wants_text: bool,
        reduce: Reduction,
        *,
        sums: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`sums`: how many sums of its rows a kernel writes beside G's rounding residuals. `dtype`: of dx and dy."""
        self.student, self.rows, self.split, self.magnitude, self.reduce = student, rows, split, magnitude, reduce
        self.x, self.y = student.image_features, student.all_text_features
        self.wants_image, self.wants_text = wants_image, wants_text
        self.planes = 0 if split is None else split.planes
        b, n = len(self.x), len(self.y)
        like = magnitude
        self.dtype = student.gradient_dtype if dtype is None else dtype
        self.dx = wanted(self.x, wants_image, self.dtype)
        self.dy_total = like.new_empty(self.y.shape if wants_text else 0)
        self.sums = sums
        # Inner products of the rows with their features; what the kernel sums up; rounding residuals.
        self.row_sums = like.new_empty(1 + sums + (self.planes == 1), b)
        self.inner = self.row_sums[0]
        self.column_residual = like.new_empty(n if self.planes == 1 else 0)
        if split is not None:
            self.on_diagonal = like.new_empty(b)
            self.blocks = memory.gradient_blocks(b, n, self.planes)
            self.is_wide = self.dtype == torch.float32  # then products stand where the gradients will
            height = self.blocks[0][0].stop if wants_image and not self.is_wide else 0
            self.dx_total = like.new_empty(height, self.y.shape[1])
        else:
            self.on_diagonal = like
            self.blocks = [(rows, slice(0, n)) for rows in memory.row_blocks(b, n, like.device)]

    def walk(self, source: TileSource, stored: Tensor | None) -> Iterator[tuple[TileSource, slice, slice, Tensor]]:
        """Blocks of a source or, if that is there, of its stored product; their rows and columns; and memory for their G.

        That is the product's own where it is needed for nothing else.
        """
        product = source.space(0 if stored is not None else self.blocks[0][0].stop)
        space = self._space() if source.computed or stored is not None or self.split is not None else product
        for rows, columns in self.blocks:
            block = source.block(rows, product, columns) if stored is None else TileSource.stored(stored[rows])
            yield block, rows, columns, space

    def _space(self) -> Tensor:
        """Memory for one block of G."""
        rows, columns = self.blocks[0]
        size = max(self.planes, 1) * rows.stop * columns.stop
        return self.magnitude.new_empty(size, dtype=torch.float16 if self.planes else torch.float32)

    def block(self, rows: slice, columns: slice, space: Tensor, grid: tuple[int, int]) -> GradientBlock:
        """What a kernel writes of so many tiles, its G in the space."""
        m, n = rows.stop - rows.start, columns.stop - columns.start
        planes = max(self.planes, 1)
        g = space.flatten()[: planes * m * n].view(planes, m, n)
        row_parts = self.magnitude.new_empty(self.sums + (self.planes == 1), grid[1], m)
        column_residual = self.magnitude.new_empty(grid[0] if self.planes == 1 else 0, n)
        return GradientBlock(g, self.on_diagonal[rows] if self.planes else self.on_diagonal, row_parts, column_residual)

    def add(self, block: GradientBlock, rows: slice, columns: slice) -> None:
        """A block, as a kernel wrote it."""
        self._add_sums(block, rows, columns)
        first_columns, first_rows = columns.start == 0, rows.start == 0
        if self.split is None:
            (g,) = block.g
            if self.wants_image:
                torch.mm(g, self.y, out=self.dx[rows])
            if self.wants_text:
                add_product(self.dy_total, g.T, self.x[rows], first_rows)
            return
        if self.wants_image:
            total = self.dx[rows] if self.is_wide else self.dx_total[: rows.stop - rows.start]
            _add_products(total, block.g, [part[columns] for part in self.split.y_parts], first_columns)
            if columns.stop == len(self.y):
                self._write_image_gradient(total, rows)
        if self.wants_text:
            _add_products(self.dy_total[columns], block.g.mT, [part[rows] for part in self.split.x_parts], first_rows)

    def _add_sums(self, block: GradientBlock, rows: slice, columns: slice) -> None:
        sums, has_residual = len(block.row_parts), self.planes == 1
        if not sums:
            return
        m, n = block.g.shape[1:]
        launch(
            kernels.MERGE_SUMS,
            (tiles(max(m, n) if has_residual else m, MERGE["BN"]), sums + has_residual),
            MERGE,
            row_parts=block.row_parts,
            column_parts=block.column_residual,
            rows=self.row_sums[1:, rows],
            columns=self.column_residual[columns],
            row_tiles=block.row_parts.shape[1],
            column_tiles=len(block.column_residual),
            m=m,
            n=n,
            stride=self.row_sums.stride(0),
            ROWS=sums,
            FIRST_COLUMNS=columns.start == 0,
            FIRST_ROWS=rows.start == 0,
        )

    def _write_image_gradient(self, total: Tensor, rows: slice) -> None:
        assert self.split is not None
        whole_rows = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
        feature_gradient(
            product=total,
            diagonal=self.on_diagonal[rows],
            residual=self.row_sums[-1, rows] if self.planes == 1 else None,
            partners=self.y[whole_rows],
            features=self.x[rows],
            power=self.split.powers[1],
            factor=self.student.logit_scale,
            magnitude=self.magnitude,
            out=self.dx[rows],
            inner=self.inner[rows],
        )

    def finish(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Both gradients, of this rank's rows; ``<x, G y>``, the sum of which over the ranks is that of the batch; other sums."""
        if self.split is None:
            inner = (self.x * self.dx if self.wants_image else self.y * self.dy_total).sum() * self.magnitude
            factor = self.student.logit_scale * self.magnitude
            dy = self.reduce.reduce_scatter(self.dy_total.mul_(factor)) if self.wants_text else self.dy_total
            return self.dx.mul_(factor), dy, inner, [each.sum() * self.magnitude for each in self.row_sums[1:]]
        dy = product = self.reduce.reduce_scatter(self.dy_total)
        if not (self.is_wide and self.wants_text):
            dy = wanted(self.x, self.wants_text, self.dtype)
        if self.wants_text:
            inner = torch.empty_like(self.inner) if self.wants_image else self.inner
            feature_gradient(
                product=product,
                diagonal=self.on_diagonal,
                residual=self.reduce.reduce_scatter(self.column_residual) if self.planes == 1 else None,
                partners=self.x,
                features=self.student.text_features,
                power=self.split.powers[0],
                factor=self.student.logit_scale,
                magnitude=self.magnitude,
                out=dy,
                inner=inner,
            )
        total, *sums = found = [torch.empty_like(self.magnitude) for _ in range(1 + self.sums)]
        first, second, third = (*found, total, total)[:3]
        launch(
            kernels.TOTALS,
            (len(found),),
            VECTOR,
            rows=self.row_sums,
            magnitude=self.magnitude,
            first=first,
            second=second,
            third=third,
            b=len(self.x),
        )
        return self.dx, dy, total, sums


def _add_products(total: Tensor, planes: Tensor, parts: list[Tensor], first: bool) -> None:
    """The planes' sum times the parts' sum, but for the product of the second ones."""
    add_product(total, planes[0], parts[0], first)
    if len(parts) == 2:
        add_product(total, planes[0], parts[1], False)
        add_product(total, planes[1], parts[0], False)
