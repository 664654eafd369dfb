"""Matrix products with float32 sums: by the vendor's library, or by the kernel that needs them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from otter_losses.ops.triton.launch import Kernel, Tile

HALVES = (torch.float16, torch.bfloat16)


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
            summand = torch.mm(a, b, out_dtype=torch.float32)
            total.copy_(summand) if first else total.add_(summand)
            return
        a, b = a.float(), b.float()
    torch.addmm(total, a, b, beta=0 if first else 1, out=total)


@cache
def computes_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels multiply such features themselves, tile by tile, on half-precision units.

    Writing a product to memory and reading it back costs more than the product there. Before Ampere Triton has no such units.
    Float32 features are multiplied in parts, which wants float32 results of the vendor's half-precision products too.
    """
    if device.type != "cuda":
        return True
    modern = torch.cuda.get_device_capability(device) >= (8, 0)
    return modern and (dtype in HALVES or all(_sums_in_float32(device, torch.float16)))


@cache
def reads_descriptors(device: torch.device) -> bool:
    """Whether its copy engine reads tensor descriptors, and this Triton knows them."""
    if find_spec("triton.tools.tensor_descriptor") is None:
        return False
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


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
        if left.dtype in HALVES and computes_tiles(left.device, left.dtype):
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
        if all(describable(each) for each in (self.left, self.right, other) if each is not None):
            return kernel.computing_tiles
        return *(tile for tile in large if not tile["DESCRIPTORS"]), small

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
