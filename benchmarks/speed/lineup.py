"""Who is measured on a GPU, at which sizes, and in which order: what matters most comes first.

Left out to fit the time: label smoothing, distillation and the own teacher from N = 65,536; there in float32 plain torch
(`backend="torch"`) as well; other projects' kernels in float32 but at two sizes; all but three losses at 262,144, which is run
for the first width in half precision only; `torch.compile` but at three sizes of the first width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.batch import Batch, Value
from benchmarks.roofline.work import DEFAULT_MAX_MEMORY
from benchmarks.speed import rivals
from benchmarks.speed.contenders import TARGETS as BOTH_TARGETS
from benchmarks.speed.contenders import eager_info_nce, eager_siglip, of_eager, of_library, released_otter
from otter_losses.losses.registry import LOSSES, RegisteredLoss
from otter_losses.ops import reference

ORDER = (4096, 16384, 512, 1024, 32768, 65536, 262144)
"""The sizes, the most telling first."""
COMPILED = (512, 4096, 16384)
TARGETS = (512, 1024, 4096, 16384)
ACCURACY = (4096,)
TUNED = (4096,)
PROFILED = (4096, 32768)
MOST_GRAPH = 4096
MOST_CUDA = 2048
LARGEST = 262144
RIVALS_SINGLE = (4096, 16384)
"""Where other projects' kernels are run in float32: some try dozens of configurations there, which takes a minute."""
SHOWCASE = 65536
"""The size of the second width that comes before the rest: the one that rivals print numbers for."""

FLOORS = {"info_nce": "InfoNCE", "otter": "OTTER", "siglip": "SigLIP"}
"""Losses that are run at every size, and the name of their derived least time."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Contender:
    """A loss or targets of a batch. `make` raises where the contender is not to be had; `family` names its float64 oracle.

    `matrices` is about how many N x N float32 matrices it holds, where that decides whether it is tried; `floor` names its
    derived least time, which is counted at `max_memory`; `graph` says that it is also timed as a CUDA graph.
    """

    name: str
    make: Callable[[Batch], Callable[[], Any]]
    family: str = ""
    matrices: float = 0.0
    floor: str = ""
    max_memory: int = DEFAULT_MAX_MEMORY
    graph: bool = False


@dataclass(frozen=True)
class Cell:
    """One stage of the run, at one size."""

    stage: str
    pairs: int
    width: int
    dtype: str

    def batch(self, device: str) -> Batch:
        return Batch(self.pairs, self.width, device, dtype=DTYPES[self.dtype])


def plan(pairs: list[int], widths: list[int], dtypes: list[str]) -> list[Cell]:
    """All cells, the most important first."""
    sizes = sorted(pairs, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    first, *others = widths

    def cells(stage: str, width: int, dtype: str, wanted: tuple[int, ...] | None = None) -> list[Cell]:
        few = (width, dtype) != (first, dtypes[0])
        chosen = [n for n in sizes if (wanted is None or n in wanted) and not (few and n >= LARGEST)]
        return [Cell(stage, n, width, dtype) for n in chosen]

    small = tuple(n for n in sizes if n <= MOST_GRAPH)
    main, *less = dtypes
    found = [
        *cells("losses", first, main),
        *cells("accuracy", first, main, ACCURACY),
        *cells("graph", first, main, small),
        *cells("targets", first, "float32", TARGETS),
        *cells("profile", first, main, PROFILED),
        *cells("compiled", first, main, COMPILED),
    ]
    for dtype in less:
        found += cells("losses", first, dtype) + cells("graph", first, dtype, small)
    for width in others:
        found += cells("losses", width, main, (SHOWCASE,))
    for width in others:
        for dtype in dtypes:
            found += [cell for cell in cells("losses", width, dtype) if cell not in found]
    for dtype in less:
        found += cells("accuracy", first, dtype, ACCURACY) + cells("compiled", first, dtype, COMPILED)
    found += cells("tuned", first, "float32", TUNED)
    return found


def _eager(
    name: str, loss: Callable[..., Any], family: str, matrices: float, teacher: bool = False, floor: str = ""
) -> Contender:
    return Contender(name, lambda batch: of_eager(batch, loss, teacher), family, matrices, floor, graph=True)


EAGER = (
    _eager("eager ClipLoss", eager_info_nce, "info_nce", 8, floor="eager ClipLoss"),
    _eager("eager SigLIP", eager_siglip, "siglip", 6),
    _eager("released OTTER", released_otter, "released", 14, teacher=True),
)
RIVALS = (
    Contender("siglip-kernel", rivals.siglip_kernel, "siglip"),
    Contender("memeff", rivals.memeff, "info_nce"),
    Contender("inf-cl", rivals.inf_cl, "info_nce"),
)


def _library(row: RegisteredLoss, backend: str, own_teacher: bool = False, **options: Any) -> Contender:
    own = ", own teacher" if own_teacher else ""
    words = "".join(f", {name}={value}" for name, value in options.items())

    def make(batch: Batch) -> Value:
        return of_library(batch, row.module(backend=backend, **options), row.uses_teacher and not own_teacher)

    return Contender(
        f"{row.module.__name__}{own} [{backend}]{words}",
        make,
        f"{row.name}{own}",
        floor="" if own_teacher else FLOORS.get(row.name, ""),
        max_memory=options.get("max_memory", DEFAULT_MAX_MEMORY),
        graph=True,
    )


def losses(cell: Cell) -> list[Contender]:
    """The losses of a cell; the first is what the others are held against."""
    n, half, otter = cell.pairs, cell.dtype != "float32", LOSSES["otter"]
    first = [row for row in LOSSES.values() if row.name in FLOORS]
    if n >= LARGEST:
        return [_library(row, "triton") for row in first]
    found, backends = list(EAGER), ("triton", "torch") if half or n < SHOWCASE else ("triton",)
    found += [_library(row, backend) for row in first for backend in backends]
    if n < SHOWCASE:
        found += [_library(otter, backend, own_teacher=True) for backend in backends]
        found += [_library(row, backend) for row in LOSSES.values() if row not in first for backend in backends]
    if n <= MOST_CUDA:
        found.append(_library(otter, "cuda"))
    if n >= 32768:
        found.append(_library(otter, "triton", max_memory=0))
    return [*found, *RIVALS] if half or n in RIVALS_SINGLE else found


def _compile(function: Callable[..., Any]) -> Any:
    torch.compiler.reset()  # a limit counts what was compiled of one function
    return torch.compile(function, dynamic=False)


def compiled(cell: Cell) -> list[Contender]:
    """The eager losses through torch.compile, one graph a size."""

    def make(loss: Callable[..., Any], teacher: bool) -> Callable[[Batch], Value]:
        return lambda batch: of_eager(batch, _compile(loss), teacher)

    return [
        Contender("eager ClipLoss, torch.compile", make(eager_info_nce, False), "info_nce", 8),
        Contender("released OTTER, torch.compile", make(released_otter, True), "released", 14),
    ]


def targets(cell: Cell) -> list[Contender]:
    """Both targets of a batch, by whoever can make them, and the one product that is under all of them."""

    def through_compiler(batch: Batch) -> Callable[[], Any]:
        return partial(_compile(reference.released_targets), batch.v, batch.t)

    return [
        *(Contender(name, _of_teacher(function)) for name, function in BOTH_TARGETS.items()),
        Contender("flash-sinkhorn, potentials", _of_teacher(partial(rivals.flash_sinkhorn, tuned=False))),
        Contender("released targets, torch.compile", through_compiler),
    ]


def _of_teacher(function: Callable[..., Any]) -> Callable[[Batch], Callable[[], Any]]:
    return lambda batch: partial(function, batch.v, batch.t)


def tuned(cell: Cell) -> list[Contender]:
    """What tries dozens of configurations first, and so comes last."""
    return [Contender("flash-sinkhorn, potentials, tuned", _of_teacher(partial(rivals.flash_sinkhorn, tuned=True)))]


def profiled(cell: Cell) -> list[Contender]:
    return [found for found in losses(cell) if found.floor and found.name.endswith("[triton]")]
