"""What the plain and the fused arithmetic have in common: the numbers they find, and what they keep for the backward."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops import dispatch
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.world import ALONE, World

ROW_LSE, COLUMN_LSE, PAIR, ROW_DOT, COLUMN_DOT, ROW_ENTROPY, COLUMN_ENTROPY = range(7)
"""Rows of the statistics. The entropies are the targets' own (constants that turn a cross entropy into a divergence)."""

Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Statistics, scalings, kernel, cosines, state: see `soft_target`."""

Backward = tuple[Tensor, Tensor, Tensor]
"""Gradients of x, y and the scale."""


@dataclass(frozen=True)
class Teacher:
    """What the targets are made of; `spread` as in `transport.Kernel.build`."""

    similarity: Similarity
    spread: float | None
    iterations: int = 0
    entropy: bool = False


class Storage(NamedTuple):
    """What is kept from forward to backward: the transport kernel, in which dtype, and the student's cosines."""

    kernel: torch.dtype | None
    cosines: bool


def computing(x: Tensor) -> torch.dtype:
    """The dtype of numbers derived from features x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def storage_of(x: Tensor, n: int, has_teacher: bool, codes: bool, max_memory: int, fused: bool) -> Storage:
    """What of (b, N) matrices fits `max_memory`; `codes` tells whether 16 bits may hold the kernel."""
    dtype = computing(x)
    size = x.shape[0] * n * dtype.itemsize
    dense = (2 if has_teacher else 1) * size <= max_memory
    if not fused:
        return Storage(dtype if dense and has_teacher else None, dense)
    if x.dtype == dtype:
        return Storage(dtype if has_teacher and size <= max_memory else None, dense)
    # Of half-precision features a product costs less than writing it to memory and reading it back.
    if not has_teacher:
        return Storage(None, False)
    if codes and n > dispatch.STAYS_IN_CACHE and size <= 2 * max_memory:
        return Storage(torch.int16, False)
    return Storage(dtype if size <= max_memory else None, False)


def wanted(like: Tensor, wants: bool) -> Tensor:
    """Room for a gradient, or an empty stand-in."""
    return like.new_empty(like.shape if wants else 0)


@dataclass(frozen=True)
class Given:
    """The given pairs' targets: their own share of 1, and that of every pair in the batch, itself included."""

    own: float
    share: float


def pair_losses(
    statistics: Tensor, given: Given, x: Tensor, y: Tensor, scale: Tensor, teacher: Teacher | None, world: World = ALONE
) -> Tensor:
    """Of every own pair the cross entropy, mean of both directions, of its given and of its soft targets, (2, b).

    Less the entropy of the soft ones where that is asked for.
    """
    statistics = statistics[:, world.own(len(x))]
    found = torch.zeros_like(statistics[:2])
    lse = torch.add(statistics[ROW_LSE], statistics[COLUMN_LSE], out=found[0]).mul_(0.5)
    if teacher is not None:
        torch.add(lse, statistics[ROW_DOT] + statistics[COLUMN_DOT], alpha=-0.5, out=found[1])
        if teacher.entropy:
            found[1].sub_(statistics[ROW_ENTROPY] + statistics[COLUMN_ENTROPY], alpha=0.5)
    lse.sub_(statistics[PAIR], alpha=given.own)
    if given.share:
        lse.sub_(scale * (x.to(scale.dtype) @ y.sum(0, dtype=scale.dtype)), alpha=given.share)
    return found


def share_columns(statistics: Tensor, teacher: Teacher | None, world: World) -> None:
    """Add up over the ranks what each found of its rows' share of every column."""
    if world:
        world.add_logarithms(statistics[COLUMN_LSE])
        if teacher is not None:
            world.add(statistics[COLUMN_DOT])
            if teacher.entropy:
                world.add(statistics[COLUMN_ENTROPY])


@dataclass(frozen=True)
class Weights:
    """Gradients (N,) of the statistics over one magnitude; those of rows and of columns are the same, and so are the dots'."""

    lse: Tensor
    pair: Tensor
    dot: Tensor
    sum: Tensor | None
    magnitude: Tensor

    @classmethod
    def of(cls, gradient: Tensor, given: Given, world: World = ALONE) -> "Weights":
        """For the gradient (2, b) of `pair_losses`."""
        gradient, magnitude = normalised(world.all_of(gradient))
        share = gradient[0] * -given.share if given.share else None
        return cls(gradient.mean(0), gradient[0] * -given.own, gradient[1] * -0.5, share, magnitude)


def normalised(gradient: Tensor, world: World = ALONE) -> tuple[Tensor, Tensor]:
    """A gradient over its magnitude on all ranks, and that: what it is multiplied with may otherwise carry it out of range."""
    magnitude = world.highest(torch.linalg.vector_norm(gradient, torch.inf)).clamp_min(torch.finfo(gradient.dtype).tiny)
    return (gradient / magnitude).contiguous(), magnitude
