"""What this library says of its own kernels: the one place of the benchmarks that reaches into `otter_losses.ops` for it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from otter_losses.ops import dispatch, similarity
from otter_losses.ops.similarity import row_chunks

TRAFFIC = {
    "encode": "read block, write K",
    "row_scalings": "read K",
    "column_totals": "read K",
    "statistics": "read cosines and K",
    "logits_gradient": "read cosines and K, write G",
    "sigmoid_losses": "read cosines",
    "sigmoid_gradient": "read cosines, write G",
}


def traffic(name: str) -> str:
    """N x N matrices that the kernel of this name walks over, in words; all else is vectors.

    K is 4 bytes an entry, in codes 2; G as wide as x. A profile's longer names are known by the kernel's in them.
    """
    return next((TRAFFIC[kernel] for kernel in sorted(TRAFFIC, key=len, reverse=True) if kernel in name), "")


def tiles(kernel: str) -> Sequence[dict[str, int]]:
    """Every tile that the kernel may be launched with, BM, BN and num_warps; none where there is no choice."""
    from otter_losses.ops.triton import soft_target, transport

    choices = {
        "row_scalings": transport.ROWS,
        "sigmoid_losses": transport.ROWS,
        "column_totals": transport.COLUMNS,
        "statistics": soft_target.TILES,
        "logits_gradient": soft_target.TILES,
        "sigmoid_gradient": soft_target.TILES,
    }
    return choices.get(kernel, ())


def row_blocks(pairs: int) -> int:
    """Launches of a sweep over an N x N matrix on a GPU."""
    return len(row_chunks(pairs, pairs, torch.device("cuda")))


@contextmanager
def small_blocks() -> Iterator[None]:
    """A few dozen pairs take the ways of many thousands: several row blocks, none of which stays in a cache."""
    before = similarity.CHUNK_ELEMENTS, similarity.LEAST_ROWS, dispatch.STAYS_IN_CACHE
    similarity.CHUNK_ELEMENTS, similarity.LEAST_ROWS, dispatch.STAYS_IN_CACHE = {"cpu": 1}, {"cpu": 32}, 0
    try:
        yield
    finally:
        similarity.CHUNK_ELEMENTS, similarity.LEAST_ROWS, dispatch.STAYS_IN_CACHE = before


@contextmanager
def told(note: Callable[[Any, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Of every launch: kernel, arguments, and switches with the tile."""
    from otter_losses.ops.triton import launch

    launch.on_launch = note
    try:
        yield
    finally:
        launch.on_launch = None
