"""How much memory an audit takes beyond its inputs, and the tile of products that a limit leaves room for."""

from otter_losses.audit.features import BLOCK_ROWS
from otter_losses.audit.options import Options
from otter_losses.audit.pairs import Pairs
from otter_losses.checks import check_count

CPU_TILE, DEVICE_TILE = 4096, 1 << 16
"""Columns of a tile of products where memory does not matter: what a CPU's caches like, what fills another device."""

LEAST_TILE = 256

TILE_BYTES = 5
"""Of each product in a tile, with what is looked at to find the greatest."""

WORK_BYTES = 64 << 20
"""Of what is looked at again, and of features that are gathered."""


def held_bytes(pairs: int, width: int, components: int, k: int) -> int:
    """What an audit of so many of this rank's pairs takes at most beside a tile of products.

    For every pair its two projections, the two directions of its neighbours, and two more, or sums in float32 while these are
    made, 12 bytes a component; 24 for each neighbour. For features of this width three blocks of rows in float64, and matrices.
    """
    blocks = 3 * 8 * BLOCK_ROWS * width + 10 * 8 * width**2
    return pairs * (12 * components + 24 * k + 256) + blocks + WORK_BYTES


def tile_width(pairs: Pairs, options: Options, max_memory: int | None) -> int:
    """Columns of a tile that keep within the bytes of `max_memory`.

    Raises:
        ValueError: where the rest alone takes more.
    """
    most = CPU_TILE if pairs.images.device.type == "cpu" else DEVICE_TILE
    if max_memory is None:
        return most
    check_count("max_memory", max_memory, 0)
    width = max(pairs.images.width, pairs.texts.width)
    held = held_bytes(len(pairs.images), width, min(options.components, width), options.k)
    columns = (max_memory - held) // (TILE_BYTES * BLOCK_ROWS)
    if columns < LEAST_TILE:
        raise ValueError(
            f"max_memory is {max_memory}; need at least {held + LEAST_TILE * TILE_BYTES * BLOCK_ROWS} bytes for "
            f"{len(pairs.images)} pairs. Give as much, take fewer components, or share the pairs among the ranks of a group."
        )
    return min(columns, most)
