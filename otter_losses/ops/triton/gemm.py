"""Where kernels take a product's tiles from: the vendor's library, or the features themselves."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from otter_losses.ops.products import HALVES, product
from otter_losses.ops.triton.launch import Kernel, Tile

MATRIX_UNITS = ("gfx90a", "gfx94", "gfx95")
"""How the names of AMD's architectures begin that multiply half precision in matrix units: MI200, MI300 and MI350."""


@cache
def computes_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels multiply such features themselves, tile by tile: half precision, where there are matrix units for it.

    Writing a product to memory and reading it back costs more than the product there. Float32 has no units of its precision;
    before Ampere Triton has none for half precision either. AMD's GPUs have them by
    architecture.
    """
    if dtype not in HALVES or device.type != "cuda":
        return dtype in HALVES
    if torch.version.cuda is None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).startswith(MATRIX_UNITS)
    return torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True, eq=False)
class TileSource:
    """Where kernels take the tiles of ``left right^T`` from: the features themselves, or a product that is stored first.

    Attributes:
        left: features (b, D), or a stored product (b, n).
        right: features (n, D); of no account beside a stored product.
        computed: whether kernels compute their tiles.
    """

    left: Tensor
    right: Tensor
    computed: bool

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> "TileSource":
        """Of features; what kernels compute from is contiguous."""
        if computes_tiles(left.device, left.dtype):
            return cls(left.contiguous(), right.contiguous(), True)
        return cls(left, right, False)

    @classmethod
    def stored(cls, block: Tensor) -> "TileSource":
        """Of a product (b, n)."""
        return cls(block, block, False)

    def space(self, rows: int) -> Tensor:
        """Memory for the product of a block of so many rows; none where kernels compute their tiles."""
        columns = len(self.right)
        return self.left.new_empty((0, columns) if self.computed else (rows, columns), dtype=torch.float32)

    def product(self, rows: slice, space: Tensor) -> Tensor:
        """A row block's product, in the space."""
        return product(self.left[rows], self.right.T, space[: rows.stop - rows.start])

    def block(self, rows: slice, space: Tensor) -> "TileSource":
        """A row block; its product is stored in the space, where kernels do not compute it."""
        if self.computed:
            return TileSource(self.left[rows], self.right, True)
        return TileSource.stored(self.product(rows, space))

    def choices(self, kernel: Kernel) -> tuple[Tile, ...]:
        """The tiles a kernel may take from this source."""
        if not self.computed:
            return kernel.tiles
        last = kernel.computing_tiles[-1]
        is_odd = len(self.left) % 16 != 0 or len(self.right) % 16 != 0 or self.left.shape[1] % last["BK"] != 0
        return (last,) if is_odd else kernel.computing_tiles

    @property
    def key(self) -> str:
        """For the tuner: a computed tile's cost depends on the width."""
        return f"width {self.left.shape[1]}" if self.computed else "stored"

    def arguments(self, tile: Tile) -> dict[str, object]:
        """What a kernel's `cosine_tile` is given."""
        width = self.left.shape[1]
        whole = not self.computed or width % tile["BK"] == 0
        return {"left": self.left, "right": self.right, "width": width, "COMPUTED": self.computed, "WHOLE": whole}
