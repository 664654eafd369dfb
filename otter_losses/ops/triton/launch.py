"""Kernels as they are declared, and launching them: on the right device, arguments by their names."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tile = dict[str, int]
"""A program's tile: its rows BM and columns BN, the step BK along the width of a computed one, whether its features come as
tensor DESCRIPTORS; its warps and pipeline stages."""

LOADED: tuple[Tile, ...] = (
    {"BM": 32, "BN": 128, "BK": 32, "DESCRIPTORS": 0, "num_warps": 8},
    {"BM": 64, "BN": 64, "BK": 32, "DESCRIPTORS": 0, "num_warps": 8},
    {"BM": 16, "BN": 256, "BK": 32, "DESCRIPTORS": 0, "num_warps": 8},
)
"""Of programs that own one tile, which they load: sixteen elements a thread, so that their sums stay in registers."""


def _computed(rows: int, columns: int, descriptors: int, warps: int, stages: int) -> Tile:
    return {"BM": rows, "BN": columns, "BK": 64, "DESCRIPTORS": descriptors, "num_warps": warps, "num_stages": stages}


_SMALL = _computed(64, 64, 0, 8, 3)
"""For batches that do not fill the device, or of odd sizes, where every access is masked."""

_MIDDLING = _computed(128, 64, 1, 8, 3)

COMPUTED = (_computed(128, 128, 1, 4, 3), _computed(128, 128, 0, 4, 3), _MIDDLING, _SMALL)
"""Of programs that compute their tile and keep sums of it, from sm_80 on; descriptors from sm_90 on."""

COMPUTED_WRITTEN = (_computed(128, 128, 1, 8, 3), _computed(128, 64, 1, 4, 4), _computed(128, 128, 0, 8, 3), _MIDDLING, _SMALL)
"""The same of programs that write what they make of it."""

COMPUTED_BESIDE_CODES = (
    _computed(128, 64, 1, 4, 4),
    _computed(128, 128, 1, 8, 3),
    _computed(128, 64, 0, 8, 3),
    _MIDDLING,
    _SMALL,
)
"""The same beside a tile of another matrix, in 16 bits."""

COMPUTED_BESIDE_ANOTHER = (_MIDDLING, _computed(128, 64, 0, 8, 3), _SMALL)
"""The same beside one of float32."""

MOST_ON_BLACKWELL = 32
"""Entries of a computed tile for a thread from sm_100 on: a product comes from another memory there, and more would spill."""


def fits(tile: Tile, capability: int) -> bool:
    """Whether a computed tile stays in registers on devices of that major compute capability."""
    return capability < 10 or tile["BM"] * tile["BN"] <= MOST_ON_BLACKWELL * 32 * tile["num_warps"]


VECTOR: Tile = {"BN": 512, "num_warps": 4}
"""Of programs that own a piece of a vector."""

MERGE: Tile = {"BM": 16, "BN": 64, "num_warps": 4}
"""Of programs that own a piece of a vector, and add up parts of it, so many at a time."""

FEATURES: Tile = {"BM": 4, "BN": 256, "num_warps": 4}
"""Of programs that own rows of features."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A Triton function as it is declared.

    Attributes:
        function: what ``triton.jit`` made.
        tiles: those it may be launched with, the first where none was tried, the last for small batches and odd sizes.
        computing_tiles: the same where it computes its tile of cosines instead of loading it.
        reads, writes: the N x N matrices it walks over at most: "cosines" of its product, the Gibbs kernel "K", the logits'
            gradient "G". All else is vectors.
    """

    function: Any
    tiles: tuple[Tile, ...]
    computing_tiles: tuple[Tile, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.function.__name__)


Observer = Callable[[Kernel, Mapping[str, object]], None]

_observer: Observer | None = None
_runs = True


@contextmanager
def observed(observer: Observer, runs: bool = True) -> Iterator[None]:
    """Tell the observer of every launch, its arguments, switches and tile, for a while: to list or count them.

    Without `runs` the kernels are left out, and what they would write stays as it is.
    """
    global _observer, _runs
    before = _observer, _runs
    _observer, _runs = observer, runs
    try:
        yield
    finally:
        _observer, _runs = before


def launch(kernel: Kernel, grid: tuple[int, ...], tile: Tile, **arguments: object) -> None:
    """Run a kernel on the device of its first tensor."""
    named = {**arguments, **tile}
    if _observer is not None:
        _observer(kernel, named)
    if not _runs:
        return
    first = next(each for each in arguments.values() if isinstance(each, Tensor))
    elsewhere = first.is_cuda and first.device.index != torch.cuda.current_device()
    guard: AbstractContextManager[Any] = torch.cuda.device(first.device) if elsewhere else nullcontext()
    with guard:
        kernel.function[grid](**named)


def tiles(length: int, tile: int) -> int:
    """How many tiles cover a length."""
    return -(-length // tile)
