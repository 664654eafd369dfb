"""The ranks that share a loss's batch: their process group, as a loss holds it, and this process's place among them."""

import os
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from otter_losses.ops.tracing import constant_when_traced

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it


@dataclass(frozen=True, eq=False)
class HeldGroup:
    """A loss's process group, which copies of the loss share, and which a pickle leaves out: other processes have no such group.

    Attributes:
        group: None for all processes.
        was_left_out: whether a pickle has left out what was some of the processes.
    """

    group: "ProcessGroup | None"
    was_left_out: bool = False

    def __deepcopy__(self, memo: Any) -> "HeldGroup":
        return self

    def __reduce__(self) -> Any:
        is_default = self.group is None or (is_initialised() and self.group is dist.group.WORLD)
        return HeldGroup, (None, self.was_left_out or not is_default)


def is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_in(group: "ProcessGroup | None") -> int:
    """This process's rank; -1 where it is none of the group's, as torch has it."""
    return dist.get_rank(group) if is_initialised() else 0


def size_of(group: "ProcessGroup | None") -> int:
    """The number of ranks; -1 where this process is none of them, as torch has it."""
    return dist.get_world_size(group) if is_initialised() else 1


def check_group(held: HeldGroup, world_size: int) -> None:
    """There is a group, and this process is in it."""
    if not is_initialised():
        raise RuntimeError(
            f"world_size is {world_size} but torch.distributed is not initialised; call torch.distributed.init_process_group "
            "first, or build the loss with world_size=1."
        )
    if held.was_left_out:
        raise RuntimeError(
            "group is missing: a process group cannot be pickled, and that of this loss was left out. Need the group that shares "
            "the batch here; set loss.group = torch.distributed.new_group(...), or loss.group = None for all processes."
        )
    if size_of(held.group) < 1:
        raise ValueError(
            f"group does not hold this process, rank {dist.get_rank()} of all; need a group that does. Call the loss on the "
            "group's ranks only."
        )


def check_place(rank: int, world_size: int, group: "ProcessGroup | None") -> None:
    """The rank and world size of a loss are those of its process group."""
    if (rank, world_size) != (rank_in(group), size_of(group)):
        of = "" if group is None else "group"
        raise ValueError(
            f"rank={rank}, world_size={world_size} were given, but this process is rank {rank_in(group)} of "
            f"{size_of(group)}; pass rank=torch.distributed.get_rank({of}), world_size=torch.distributed.get_world_size({of}), "
            "or leave both out."
        )


def check_alone(rank: int | None, world_size: int | None, group: "ProcessGroup | None") -> None:
    """For a loss of one process: it was told of that, or finds no others."""
    if is_initialised():
        if rank is not None and size_of(group) > 1:
            _warn_once(
                f"rank={rank}, world_size=1 were given, but this process is rank {rank_in(group)} of {size_of(group)}: the loss "
                "is that of this process's pairs alone. To share the batch leave rank and world_size out; if this is meant, say "
                "world_size=1 alone."
            )
        elif rank:
            check_place(rank, 1, group)
    elif rank:
        raise RuntimeError(
            f"rank is {rank} but torch.distributed is not initialised; call torch.distributed.init_process_group first, or leave "
            "rank out."
        )
    elif world_size is None and not torch.compiler.is_compiling() and _is_launched_among_others():
        _warn_once(
            f"this process was launched as rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, but torch.distributed is not "
            "initialised: the loss is that of this process's pairs alone. Call torch.distributed.init_process_group first; if "
            "this is meant, say world_size=1."
        )


def _is_launched_among_others() -> bool:
    """By torchrun, or another launcher that says so in the variables that torch.distributed reads."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def warn_of_copies(group: "ProcessGroup | None") -> None:
    _warn_once(
        f"all {size_of(group)} ranks bring the very same pairs, so each computes their loss alone. If every rank should have "
        "pairs of its own, the data loader lacks a torch.utils.data.DistributedSampler; if some ranks work on one batch together "
        "(tensor parallelism), pass group= the data-parallel ranks; if each rank should compute the whole, say world_size=1."
    )


def warn_of_some_copies(group: "ProcessGroup | None") -> None:
    _warn_once(
        f"some of {size_of(group)} ranks bring the very same pairs, and others do not: pairs have copies as negatives. If those "
        "ranks work on one batch together (tensor parallelism), pass group= the data-parallel ranks; if every rank should have "
        "pairs of its own, look at the data loader's sampler."
    )


@constant_when_traced
def _warn_once(message: str) -> None:
    _warn(message)


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
