"""Who is measured on a GPU, stage by stage of `benchmarks.speed.plan`.

The headline is what people train with, eager and compiled, other projects' kernels, and this library's three main losses as they
are called, ``backend="auto"``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.batch import Batch, Problems, Value
from benchmarks.roofline.work import DEFAULT_MAX_MEMORY
from benchmarks.speed import rivals
from benchmarks.speed.contenders import TARGETS as BOTH_TARGETS
from benchmarks.speed.contenders import eager_info_nce, eager_siglip, of_eager, of_library, released_otter, sinkhorn_loop
from benchmarks.speed.plan import EPSILON, LARGEST, MOST_HELD, ROUNDS, Cell
from otter_losses import sinkhorn_knopp
from otter_losses.losses.registry import LOSSES, RegisteredLoss
from otter_losses.ops import reference

MOST_CUDA = 2048
FLOORS = {"info_nce": "InfoNCE", "otter": "OTTER", "siglip": "SigLIP"}
"""Losses that are run at every size, and the name of their derived least time."""


@dataclass(frozen=True)
class Contender:
    """A loss, targets or plans of a batch. `make` raises where it is not to be had; `family` names a loss's float64 oracle.

    `matrices` is about how many N x N float32 matrices it holds, where that decides whether it is tried; `floor` names its
    derived least time, which is counted at `max_memory`; `graph` says that it can be captured in a CUDA graph.
    """

    name: str
    make: Callable[[Any], Callable[[], Any]]
    family: str = ""
    matrices: float = 0.0
    floor: str = ""
    max_memory: int = DEFAULT_MAX_MEMORY
    graph: bool = True


def contenders(cell: Cell) -> list[Contender]:
    """Whose rows a cell has."""
    if cell.stage == "accuracy":
        return [found for found in (*headline(cell), *plain_torch(cell), *others(cell)) if "torch.compile" not in found.name]
    stages = {
        "headline": headline,
        "torch": plain_torch,
        "others": others,
        "targets": targets,
        "sinkhorn": sinkhorn,
        "tuned": tuned,
        "profile": profiled,
    }
    return stages[cell.stage](cell)


# ---- losses ----


def _eager(
    name: str, loss: Callable[..., Any], family: str, matrices: float, teacher: bool = False, floor: str = ""
) -> Contender:
    return Contender(name, lambda batch: of_eager(batch, loss, teacher), family, matrices, floor)


def _compiled(name: str, loss: Callable[..., Any], family: str, matrices: float, teacher: bool = False) -> Contender:
    return Contender(f"{name}, torch.compile", lambda batch: of_eager(batch, _compile(loss), teacher), family, matrices)


def _compile(function: Callable[..., Any]) -> Any:
    torch.compiler.reset()  # a limit counts what was compiled of one function; so a cell has one that is
    return torch.compile(function, dynamic=False)


def _rival(name: str, make: Callable[[Batch], Value], family: str) -> Contender:
    return Contender(name, lambda batch: batch.inside(make(batch)), family)


def _library(row: RegisteredLoss, own_teacher: bool = False, **options: Any) -> Contender:
    words = ", own teacher" if own_teacher else ""
    words += "".join(f" [{value}]" if name == "backend" else f", {name}={value}" for name, value in options.items())

    def make(batch: Batch) -> Value:
        return of_library(batch, row.module(**options), row.uses_teacher and not own_teacher)

    return Contender(
        f"{row.module.__name__}{words}",
        make,
        f"{row.name}{', own teacher' if own_teacher else ''}",
        floor="" if own_teacher or options.get("backend") == "torch" else FLOORS.get(row.name, ""),
        max_memory=options.get("max_memory", DEFAULT_MAX_MEMORY),
    )


MAIN = tuple(LOSSES[name] for name in FLOORS)
LESS = tuple(row for row in LOSSES.values() if row not in MAIN)


def headline(cell: Cell) -> list[Contender]:
    """What people run today, what they could run instead, and this library's main losses."""
    ours = [_library(row) for row in MAIN]
    if cell.pairs >= LARGEST:
        return ours
    found = [
        _eager("eager ClipLoss", eager_info_nce, "info_nce", 8, floor="eager ClipLoss"),
        _eager("eager SigLIP", eager_siglip, "siglip", 6),
        *ours,
        _rival("siglip-kernel", rivals.siglip_kernel, "siglip"),
        _rival("memeff", rivals.memeff, "info_nce"),
    ]
    if cell.pairs <= MOST_HELD:
        found.append(_compiled("eager ClipLoss", eager_info_nce, "info_nce", 8))
    return found


def plain_torch(cell: Cell) -> list[Contender]:
    return [_library(row, backend="torch") for row in MAIN]


def others(cell: Cell) -> list[Contender]:
    """The released loss, the other losses, other ways to compute, and the rivals that are far behind."""
    n, otter = cell.pairs, LOSSES["otter"]
    if n >= LARGEST:
        return []
    found = [_rival("inf-cl", rivals.inf_cl, "info_nce"), _eager("released OTTER", released_otter, "released", 14, teacher=True)]
    if n <= MOST_HELD:
        found += [_library(otter, own_teacher=True), *(_library(row) for row in LESS)]
        found.append(_compiled("released OTTER", released_otter, "released", 14, teacher=True))
    if n <= MOST_CUDA:
        found.append(_library(otter, backend="cuda"))
    if n >= MOST_HELD:
        found.append(_library(otter, max_memory=0))
    if n > MOST_HELD:
        found += plain_torch(cell)
    return found


def profiled(cell: Cell) -> list[Contender]:
    return [_library(row) for row in MAIN]


# ---- transport ----


def targets(cell: Cell) -> list[Contender]:
    """Both targets of a batch, by whoever can make them, and the one product that is under all of them."""

    def through_compiler(batch: Batch) -> Callable[[], Any]:
        return partial(_compile(reference.released_targets), batch.v, batch.t)

    return [
        *(Contender(name, _of_teacher(each), graph=not name.startswith("POT")) for name, each in BOTH_TARGETS.items()),
        Contender("flash-sinkhorn, potentials", _of_teacher(partial(rivals.flash_sinkhorn, tuned=False)), graph=False),
        Contender("released targets, torch.compile", through_compiler),
    ]


def _of_teacher(function: Callable[..., Any]) -> Callable[[Batch], Callable[[], Any]]:
    return lambda batch: partial(function, batch.v, batch.t)


def tuned(cell: Cell) -> list[Contender]:
    """What tries dozens of configurations first, and so comes last."""
    return [Contender("flash-sinkhorn, potentials, tuned", _of_teacher(partial(rivals.flash_sinkhorn, tuned=True)), graph=False)]


def sinkhorn(cell: Cell) -> list[Contender]:
    """Transport alone, a batch of problems."""

    def of(solve: Callable[[], Callable[..., Any]]) -> Callable[[Problems], Callable[[], Any]]:
        return lambda problems: partial(solve(), problems.scores, EPSILON, ROUNDS)

    return [
        Contender("sinkhorn_knopp", of(lambda: sinkhorn_knopp)),
        Contender("POT, batch solver", of(lambda: rivals.pot_batch), graph=False),
        Contender("a loop", of(lambda: sinkhorn_loop)),
        Contender("a loop, torch.compile", of(lambda: _compile(sinkhorn_loop))),
    ]
