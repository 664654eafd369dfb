"""What this library's kernels declare of themselves: the one place of the benchmarks that reads it."""

from functools import cache
from importlib.util import find_spec

import torch

from otter_losses.ops import memory, products

MODULES = ("cross_entropy", "features", "matching", "sigmoid", "similarity", "sinkhorn", "targets")


@cache
def _declared() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """The N x N matrices that each kernel reads and writes, by its name; nothing where Triton is not installed."""
    if find_spec("triton") is None:
        return {}
    from importlib import import_module

    from otter_losses.ops.triton.launch import Kernel

    found: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for module in MODULES:
        for kernel in vars(import_module(f"otter_losses.ops.triton.kernels.{module}")).values():
            if isinstance(kernel, Kernel):
                reads, writes = found.get(kernel.name, (frozenset(), frozenset()))
                found[kernel.name] = reads | set(kernel.reads), writes | set(kernel.writes)
    return found


def names() -> list[str]:
    """All kernels."""
    return sorted(_declared())


def matrices(name: str, soft: bool = True, computed: bool = False) -> tuple[list[str], list[str]]:
    """N x N matrices that the kernel of this name reads and writes, of a loss with soft targets or without.

    A profile's longer names are known by the kernel's in them. What a kernel computes tile by tile it does not read.
    """
    known = next((kernel for kernel in sorted(_declared(), key=len, reverse=True) if kernel in name), None)
    if known is None:
        return [], []
    absent = {*(() if soft else ("K",)), *(("cosines",) if computed else ())}
    reads, writes = _declared()[known]
    return sorted(reads - absent), sorted(writes)


def traffic(name: str, soft: bool = True, computed: bool = False) -> str:
    """`matrices` in words: all that a kernel walks over; all else is vectors and features."""
    reads, writes = matrices(name, soft, computed)
    words = [("read " + " and ".join(reads)) if reads else "", ("write " + " and ".join(writes)) if writes else ""]
    return ", ".join(each for each in words if each)


def row_blocks(pairs: int) -> int:
    """Launches of a sweep over an N x N matrix on a GPU."""
    return len(memory.row_blocks(pairs, pairs, torch.device("cuda")))


def computes_tiles(features: torch.Tensor) -> bool:
    """Whether kernels compute the tiles of these features' products."""
    return find_spec("triton") is not None and products.computes_tiles(features.device, features.dtype)
