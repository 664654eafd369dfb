"""A product whose factors come by tensor descriptors, as a launch of it is recorded."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from benchmarks.kernels import launches
from otter_losses.ops.triton.launch import Kernel, Tile

TILES: tuple[Tile, ...] = (
    {"BM": 128, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3},
    {"BM": 64, "BN": 128, "BK": 32, "num_warps": 4, "num_stages": 2},
)


@triton.jit
def described_product(left, right, out, n, width, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, width, BK):
        total += tl.dot(left.load([row, k]), right.load([column, k]).T)
    tl.store(out + (row + tl.arange(0, BM))[:, None] * n + (column + tl.arange(0, BN))[None, :], total)


def recorded(tiles: tuple[Tile, ...] = TILES) -> launches.Launch:
    """A launch with the first tile."""
    tile = tiles[0]
    features = torch.zeros(256, 64, dtype=torch.bfloat16)
    arguments: dict[str, object] = {
        "left": TensorDescriptor.from_tensor(features, [tile["BM"], tile["BK"]]),
        "right": TensorDescriptor.from_tensor(features, [tile["BN"], tile["BK"]]),
        "out": torch.zeros(256, 256),
        "n": 256,
        "width": 64,
    }
    return launches._launch(Kernel(described_product, tiles), {**arguments, **tile}, [])
