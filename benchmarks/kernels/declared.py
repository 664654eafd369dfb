"""What this library's kernels declare of themselves: the one place of the benchmarks that reads it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from otter_losses.ops.triton.launch import Kernel, observed

MODULES = ("cross_entropy", "features", "matching", "sigmoid", "similarity", "sinkhorn", "targets")


HOLDERS = {"cosines": ("left",), "K": ("gibbs", "out"), "G": ("g",)}
"""Arguments that a launch has its block of a matrix in."""


@cache
def _declared() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The N x N matrices that each kernel reads and writes, by its name; nothing where Triton is not installed."""
    if find_spec("triton") is None:
        return {}
    modules = [import_module(f"otter_losses.ops.triton.kernels.{name}") for name in MODULES]
    kernels = [each for module in modules for each in vars(module).values() if isinstance(each, Kernel)]
    return {kernel.name: (kernel.reads, kernel.writes) for kernel in kernels}


def names() -> list[str]:
    """All kernels."""
    return sorted(_declared())


def matrices(name: str, soft: bool = True, computed: bool = False) -> tuple[list[str], list[str]]:
    """N x N matrices that the kernel of this name reads and writes, of a loss with soft targets or without.

    One stands there as often as it is walked over. What a kernel computes tile by tile it does not read.
    """
    absent = {*(() if soft else ("K",)), *(("cosines",) if computed else ())}
    reads, writes = _declared().get(name, ((), ()))
    return [each for each in reads if each not in absent], list(writes)


def traffic(name: str, soft: bool = True, computed: bool = False) -> str:
    """`matrices` in words: all that a kernel walks over; all else is vectors and features."""
    reads, writes = (sorted(set(each)) for each in matrices(name, soft, computed))
    words = [("read " + " and ".join(reads)) if reads else "", ("write " + " and ".join(writes)) if writes else ""]
    return ", ".join(each for each in words if each)


@contextmanager
def bytes_moved() -> Iterator[Counter[str]]:
    """Bytes of the N x N matrices that launches read and write meanwhile, by the kernels' names."""
    found: Counter[str] = Counter()

    def note(kernel: Kernel, arguments: Mapping[str, object]) -> None:
        found[kernel.name] += _bytes(kernel, arguments)

    with observed(note):
        yield found


def _bytes(kernel: Kernel, arguments: Mapping[str, Any]) -> int:
    reads, writes = matrices(kernel.name, arguments.get("SOFT") is not False, arguments.get("COMPUTED") is True)
    if arguments.get("WRITE") is False:
        writes = []
    blocks = [arguments[name] for matrix in (*reads, *writes) for name in HOLDERS[matrix] if name in arguments]
    return sum((block if isinstance(block, Tensor) else block.base).nbytes for block in blocks)  # else a tensor descriptor
