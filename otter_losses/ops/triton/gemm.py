"""Where kernels take a product's tiles from: the vendor's library, or the features themselves."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from otter_losses.ops import memory, products
from otter_losses.ops.products import HALVES, product
from otter_losses.ops.triton.launch import Kernel, Tile, fits


@cache
def reads_descriptors(device: torch.device) -> bool:
    """Whether its copy engine reads tensor descriptors, and this Triton knows them."""
    if find_spec("triton.tools.tensor_descriptor") is None:
        return False
    is_nvidia = torch.version.cuda is not None
    return device.type != "cuda" or (is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0))


@cache
def _capability(device: torch.device) -> int:
    """The major compute capability of NVIDIA's; of others 0."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" and torch.version.hip is None else 0


def described(matrix: Tensor, rows: int, columns: int) -> Any:
    """A tensor descriptor, read in tiles of that shape."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


def describable(matrix: Tensor) -> bool:
    """Whether the copy engine can read it."""
    aligned = matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.itemsize % 16 == 0
    return aligned and matrix.stride(1) == 1 and reads_descriptors(matrix.device)


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
        """Of features; what kernels compute from is contiguous, and half precision."""
        if left.dtype in HALVES and products.computes_tiles(left.device, left.dtype):
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

    def product(self, rows: slice, columns: slice, space: Tensor) -> Tensor:
        """A block's product, (m, n), in the space."""
        left, right = self.left[rows], self.right[columns]
        return product(left, right.T, space.flatten()[: len(left) * len(right)].view(len(left), len(right)))

    def block(self, rows: slice, space: Tensor, columns: slice = slice(None)) -> "TileSource":
        """A block; its product is stored in the space, where kernels do not compute it."""
        if self.computed:
            return TileSource(self.left[rows], self.right[columns], True)
        return TileSource.stored(self.product(rows, columns, space))

    def row_blocks(self) -> list[slice]:
        """Those that a walk over it goes by: large where no product is stored."""
        b, n = len(self.left), len(self.right)
        return memory.pass_blocks(b, n) if self.computed else memory.row_blocks(b, n, self.left.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return len(self.left), len(self.right) if self.computed else self.left.shape[1]

    def choices(self, kernel: Kernel, other: Tensor | None = None) -> tuple[Tile, ...]:
        """The tiles a kernel may take from this source, beside another matrix that it reads by descriptor too."""
        if not self.computed:
            return kernel.tiles
        *large, small = kernel.computing_tiles
        m, n = self.shape
        if m % 16 or n % 16 or self.left.shape[1] % small["BK"]:
            return (small,)
        described = all(describable(each) for each in (self.left, self.right, other) if each is not None)
        capability = _capability(self.left.device)
        return *(tile for tile in large if described >= tile["DESCRIPTORS"] and fits(tile, capability)), small

    @property
    def key(self) -> str:
        """For the tuner: a computed tile's cost depends on the width."""
        return f"width {self.left.shape[1]}" if self.computed else "stored"

    def arguments(self, tile: Tile) -> dict[str, object]:
        """What a kernel's `cosine_tile` is given."""
        width = self.left.shape[1]
        m, n = self.shape
        left: Any = self.left
        right: Any = self.right
        if self.computed and tile["DESCRIPTORS"]:
            left, right = described(left, tile["BM"], tile["BK"]), described(right, tile["BN"], tile["BK"])
        return {
            "left": left,
            "right": right,
            "width": width,
            "m": m,
            "n": n,
            "EVEN": m % tile["BM"] == 0 and n % tile["BN"] == 0,
            "COMPUTED": self.computed,
            "WHOLE": not self.computed or width % tile["BK"] == 0,
        }
