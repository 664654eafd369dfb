"""Who is measured on a GPU, at which sizes, and in which order: what matters most comes first.

Left out to fit the time: label smoothing, distillation and the own teacher from N = 65,536; there in float32 plain torch
(`backend="torch"`) as well; other projects' kernels in float32 but at two sizes; all but three losses at 262,144, which is run
for the first width in half precision only; `torch.compile` but at three sizes of the first width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.roofline.floors import DEFAULT_MAX_MEMORY
from benchmarks.speed import rivals
from benchmarks.speed.contenders import (
    Batch,
    Value,
    eager_info_nce,
    eager_siglip,
    of_eager,
    of_library,
    pot_targets,
    released_otter,
)
from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
from otter_losses.functional import otter_targets
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
    _eager("eager ClipLoss", eager_info_nce, "InfoNCE", 8, floor="eager ClipLoss"),
    _eager("eager SigLIP", eager_siglip, "SigLIP", 6),
    _eager("released OTTER", released_otter, "released", 14, teacher=True),
)
RIVALS = (
    Contender("siglip-kernel", rivals.siglip_kernel, "SigLIP"),
    Contender("memeff", rivals.memeff, "InfoNCE"),
    Contender("inf-cl", rivals.inf_cl, "InfoNCE"),
)


def _library(
    name: str, build: Callable[..., nn.Module], family: str, teacher: bool, floor: str = "", **options: Any
) -> Contender:
    def make(batch: Batch) -> Value:
        return of_library(batch, build(**options), teacher)

    return Contender(name, make, family, floor=floor, max_memory=options.get("max_memory", DEFAULT_MAX_MEMORY), graph=True)


def losses(cell: Cell) -> list[Contender]:
    """The losses of a cell; the first is what the others are held against."""
    n, half = cell.pairs, cell.dtype != "float32"
    kinds: list[tuple[str, Callable[..., nn.Module], str, bool, str]] = [
        ("InfoNCELoss", InfoNCELoss, "InfoNCE", False, "InfoNCE"),
        ("OTTERLoss", OTTERLoss, "OTTER", True, "OTTER"),
        ("SigLIPLoss", SigLIPLoss, "SigLIP", False, "SigLIP"),
    ]
    if n >= LARGEST:
        return [
            _library(f"{name} [triton]", build, family, teacher, floor, backend="triton")
            for name, build, family, teacher, floor in kinds
        ]
    found = list(EAGER)
    if n < SHOWCASE:
        kinds += [
            ("OTTERLoss, own teacher", OTTERLoss, "OTTER, own teacher", False, ""),
            ("LabelSmoothingLoss", LabelSmoothingLoss, "label smoothing", False, ""),
            ("DistillationLoss", DistillationLoss, "distillation", True, ""),
        ]
    for name, build, family, teacher, floor in kinds:
        for backend in ("triton", "torch") if half or n < SHOWCASE else ("triton",):
            found.append(_library(f"{name} [{backend}]", build, family, teacher, floor, backend=backend))
    if n <= MOST_CUDA:
        found.append(_library("OTTERLoss [cuda]", OTTERLoss, "OTTER", True, "OTTER", backend="cuda"))
    if n >= 32768:
        options = {"backend": "triton", "max_memory": 0}
        found.append(_library("OTTERLoss [triton], max_memory=0", OTTERLoss, "OTTER", True, "OTTER", **options))
    return [*found, *RIVALS] if half or n in RIVALS_SINGLE else found


def _compile(function: Callable[..., Any]) -> Any:
    torch.compiler.reset()  # a limit counts what was compiled of one function
    return torch.compile(function, dynamic=False)


def compiled(cell: Cell) -> list[Contender]:
    """The eager losses through torch.compile, one graph a size."""

    def make(loss: Callable[..., Any], teacher: bool) -> Callable[[Batch], Value]:
        return lambda batch: of_eager(batch, _compile(loss), teacher)

    return [
        Contender("eager ClipLoss, torch.compile", make(eager_info_nce, False), "InfoNCE", 8),
        Contender("released OTTER, torch.compile", make(released_otter, True), "released", 14),
    ]


def targets(cell: Cell) -> list[Contender]:
    """Both targets of a batch, by whoever can make them, and the one product that is under all of them."""

    def make(function: Callable[..., Any]) -> Callable[[Batch], Callable[[], Any]]:
        return lambda batch: lambda: function(batch.v, batch.t)

    def pot(batch: Batch) -> Callable[[], Any]:
        rivals.load("ot")
        return lambda: pot_targets(batch.v, batch.t)

    def through_compiler(batch: Batch) -> Callable[[], Any]:
        function = _compile(reference.released_targets)
        return lambda: function(batch.v, batch.t)

    return [
        Contender("released targets", make(reference.released_targets)),
        Contender("otter_targets", make(otter_targets)),
        Contender("POT targets", pot),
        Contender("flash-sinkhorn, potentials", _flash(tuned=False)),
        Contender("one N x N x 2D product", make(lambda v, t: torch.cat((v, t), 1) @ torch.cat((v + t, t), 1).T)),
        Contender("released targets, torch.compile", through_compiler),
    ]


def _flash(tuned: bool) -> Callable[[Batch], Callable[[], Any]]:
    def make(batch: Batch) -> Callable[[], Any]:
        rivals.load("flash_sinkhorn")
        return lambda: rivals.flash_sinkhorn(batch.v, batch.t, tuned=tuned)

    return make


def tuned(cell: Cell) -> list[Contender]:
    """What tries dozens of configurations first, and so comes last."""
    return [Contender("flash-sinkhorn, potentials, tuned", _flash(tuned=True))]


def profiled(cell: Cell) -> list[Contender]:
    return [
        contender
        for contender in losses(cell)
        if contender.name in {f"{name} [triton]" for name in ("OTTERLoss", "InfoNCELoss", "SigLIPLoss")}
    ]
