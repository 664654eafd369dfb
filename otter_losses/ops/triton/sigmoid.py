"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient, each row block read by one kernel; cosines are kept."""

from torch import Tensor

from otter_losses.ops.contract import normalised
from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.triton.features import GAIN, FeatureGradients, product
from otter_losses.ops.triton.kernels import sigmoid as kernels
from otter_losses.ops.triton.launch import Tile, launch, tiles, tuned
from otter_losses.ops.triton.soft_target import TILES
from otter_losses.ops.triton.transport import ROWS
from otter_losses.ops.world import World


def forward(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, keep: bool, world: World) -> tuple[Tensor, Tensor]:
    b, n, start = len(x), len(y), world.start
    chunks = row_chunks(b, n, x.device)
    losses, kept = scale.new_empty(b), scale.new_empty(b, n) if keep else scale.new_empty(0)
    space = kept if keep else scale.new_empty(chunks[0].stop, n)
    for rows in chunks:
        block = product(x[rows], y.T, kept[rows] if keep else space[: rows.stop - rows.start])

        def run(tile: Tile, block: Tensor = block, rows: slice = rows) -> None:
            arguments = (block, scale, bias, losses[rows], start + rows.start, *block.shape)
            launch(kernels.sigmoid_losses, (tiles(len(block), tile["BM"]),), *arguments, tile=tile)

        run(tuned("sigmoid_losses", block, ROWS, run))
    return losses, kept


def backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    kept: Tensor,
    wants_dx: bool,
    wants_dy: bool,
    world: World,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradient, magnitude = normalised(gradient, world)
    gradients = FeatureGradients(x, y, scale * magnitude, wants_dx, wants_dy, world)
    total = _add_blocks(gradients, gradient, scale, bias, kept)
    dx, dy, inner = gradients.finish()
    return dx, dy, inner * magnitude, total * magnitude


def _add_blocks(gradients: FeatureGradients, gradient: Tensor, scale: Tensor, bias: Tensor, kept: Tensor) -> Tensor:
    """Add all of the logits' gradient; its sum."""
    total = scale.new_zeros(())
    x, y, n, start = gradients.x, gradients.y, len(gradients.y), gradients.world.start
    chunks = row_chunks(len(x), n, x.device)
    space = scale.new_empty(chunks[0].stop, n)
    g_space = gradients.space(space)
    for rows in chunks:
        block = kept[rows] if kept.numel() else product(x[rows], y.T, space[: rows.stop - rows.start])
        g = g_space[: len(block)]

        def run(tile: Tile, block: Tensor = block, rows: slice = rows, g: Tensor = g) -> tuple[tuple[Tensor, Tensor], Tensor]:
            grid = tiles(len(block), tile["BM"]), tiles(n, tile["BN"])
            lost, row_parts = gradients.lost(block, grid), block.new_empty(grid[1], len(block))
            out = g, gradients.diagonal[rows], *lost, row_parts
            arguments = (block, scale, bias, gradient[rows], *out, start + rows.start, *block.shape, GAIN)
            launch(kernels.sigmoid_gradient, grid, *arguments, APART=gradients.half, tile=tile)
            return lost, row_parts

        in_place = g.data_ptr() == block.data_ptr()
        lost, row_parts = run(tuned(f"sigmoid_gradient {gradients.half} {in_place}", block, TILES, None if in_place else run))
        total = total + row_parts.sum()
        gradients.add(g, lost, rows)
    return total
