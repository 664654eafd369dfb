"""Matrix products with float32 sums, by the vendor's library, of float32 or half-precision operands."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from otter_losses.ops.contract import wanted
from otter_losses.ops.triton.kernels import features as kernels
from otter_losses.ops.triton.launch import Tile, launch, tiles
from otter_losses.ops.world import World

HALVES = (torch.float16, torch.bfloat16)

GAIN = 2.0**13
"""Of a logits' gradient in float16: its entries off the diagonal are at most 4, and small ones stay above the least float16."""

TILE: Tile = {"BM": 4, "BN": 256, "num_warps": 4}


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether this torch multiplies, and multiplies and adds, operands of that type into float32 there."""
    if device.type != "cuda":
        return False, False
    operand, out = torch.zeros(16, 16, dtype=dtype, device=device), torch.zeros(16, 16, device=device)

    def works(run: Callable[[], Tensor]) -> bool:
        try:
            run()
        except (RuntimeError, TypeError) as error:
            # An error of memory or of the library is no answer.
            if isinstance(error, torch.OutOfMemoryError) or ("CUBLAS" in str(error) and "NOT_SUPPORTED" not in str(error)):
                raise
            return False
        return True

    return (
        works(lambda: torch.mm(operand, operand, out_dtype=torch.float32, out=out)),
        works(lambda: torch.addmm(out, operand, operand, out_dtype=torch.float32, out=out)),
    )


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a b`` in float32."""
    if a.dtype not in HALVES:
        return torch.mm(a, b, out=out)
    if _sums_in_float32(a.device, a.dtype)[0]:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``total + a b`` in float32; `first` overwrites."""
    if a.dtype in HALVES:
        multiplies, adds = _sums_in_float32(a.device, a.dtype)
        if adds:
            torch.addmm(total, a, b, beta=0 if first else 1, out_dtype=torch.float32, out=total)
            return
        if multiplies:
            found = torch.mm(a, b, out_dtype=torch.float32)
            total.copy_(found) if first else total.add_(found)
            return
        a, b = a.float(), b.float()
    torch.addmm(total, a, b, beta=0 if first else 1, out=total)


def narrow(values: Tensor, peak: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features in float16, over a power of two that brings them, or others of that peak, into its range; and that power, 0-D."""
    out, octave = values.new_empty(values.shape, dtype=torch.float16), values.new_empty((), dtype=torch.float32)
    peak = _peak(values) if peak is None else peak
    n, d = values.shape
    launch(kernels.narrow, (tiles(n, TILE["BM"]),), values, peak, out, octave, n, d, *values.stride(), tile=TILE)
    return out, octave


def _peak(values: Tensor) -> Tensor:
    peak: Tensor = torch.linalg.vector_norm(values, torch.inf)
    return peak


class FeatureGradients:
    """``dx = f G y`` and ``dy = f G^T x`` from the row blocks of G as they come, and ``<x, G y>``.

    Of half-precision features G comes in float16, times `GAIN` and with its diagonal apart, and so do the features it meets:
    products at the matrix units' full rate, sums in float32, an error a tenth of what rounding the result costs.
    """

    def __init__(self, x: Tensor, y: Tensor, factor: Tensor, wants_dx: bool, wants_dy: bool, world: World) -> None:
        self.x, self.y, self.factor, self.world = x, y, factor, world
        self.wants_dx, self.wants_dy = wants_dx, wants_dy
        self.half = x.dtype in HALVES
        self.dx = wanted(x, wants_dx)
        self.dy_total = factor.new_empty(y.shape if wants_dy else 0)
        self.diagonal, self.inner, self.row_residual = factor.new_empty(3, len(x))
        self.column_residual = factor.new_zeros(len(y))
        if self.half and wants_dx:
            self.narrow_y, self.y_octave = narrow(y)
        if self.half and wants_dy:
            self.x_peak = world.highest(_peak(x))

    def lost(self, block: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Room for what the rounding of a block's tiles loses."""
        if not self.half:
            return self.inner, self.inner
        return block.new_empty(grid[1], block.shape[0]), block.new_empty(grid[0], block.shape[1])

    def space(self, space: Tensor) -> Tensor:
        """Room for a block's gradient: float16 memory of its own, or the space given, in which the block may lie itself."""
        return space.new_empty(space.shape, dtype=torch.float16) if self.half else space

    def add(self, g: Tensor, lost: tuple[Tensor, Tensor], rows: slice) -> None:
        """A block of rows, and what its rounding lost, summed over the rows (tiles, m) and columns (tiles, N) of its tiles."""
        x, narrowed = self.x[rows], self.x[rows]
        if self.half:
            torch.sum(lost[0], 0, out=self.row_residual[rows])
            self.column_residual += lost[1].sum(0)
        if self.wants_dx:
            if self.half:
                found = product(g, self.narrow_y, self.factor.new_empty(x.shape))
                residual = self.row_residual[rows]
                on_diagonal = self.diagonal[rows], residual, self.y[self.world.here(rows)]
                self._finish(found, self.y_octave, on_diagonal, x, self.dx[rows], self.inner[rows])
            else:
                torch.mm(g, self.y, out=self.dx[rows])
        if self.wants_dy:
            if self.half:
                narrowed, self.x_octave = narrow(x, self.x_peak)
            add_product(self.dy_total, g.T, narrowed, first=rows.start == 0)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both gradients, of this rank's rows, and ``<x, G y>``, the sum of which over the ranks is that of the batch."""
        if not self.half:
            inner = (self.x * self.dx if self.wants_dx else self.y * self.dy_total).sum()
            dy = self.world.scatter(self.dy_total.mul_(self.factor)) if self.wants_dy else self.dy_total
            return self.dx.mul_(self.factor), dy, inner
        dy = wanted(self.x, self.wants_dy)
        if self.wants_dy:
            found, lost = self.world.scatter(self.dy_total), self.world.scatter(self.column_residual)
            inner = self.factor.new_empty(len(found))
            y = self.y[self.world.own(len(found))]
            self._finish(found, self.x_octave, (self.diagonal, lost, self.x), y, dy, inner)
            self.inner = self.inner if self.wants_dx else inner
        return self.dx, dy, self.inner.sum()

    def _finish(
        self,
        found: Tensor,
        octave: Tensor,
        on_diagonal: tuple[Tensor, Tensor, Tensor],
        own: Tensor,
        out: Tensor,
        inner: Tensor,
    ) -> None:
        """``f (G y)`` into `out`, from the product off the diagonal and the diagonal, its residual and its features.

        The inner products of its rows, without f, with `own` go into `inner`.
        """
        m, d = found.shape
        sizes = (m, d, *on_diagonal[2].stride(), *own.stride(), 1 / GAIN)
        arguments = (found, *on_diagonal, own, octave, self.factor, out, inner)
        launch(kernels.feature_gradient, (tiles(m, TILE["BM"]),), *arguments, *sizes, tile=TILE)
