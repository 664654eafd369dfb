"""Ranks of a process group agree on what they bring to a loss; what is wrong on one of them is an error on all."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses import checks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

LETTER = 2048
"""Bytes in which a rank describes itself to the others."""

PATIENCE = 5.0
"""Seconds in which ranks that are alive tell those that miss somebody."""


def check_initialised(world_size: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"world_size is {world_size} but torch.distributed is not initialised; call torch.distributed.init_process_group "
            "first, or build the loss with world_size=1."
        )


def check_world(rank: int, world_size: int, group: "ProcessGroup | None") -> None:
    """The rank and world size a loss was built with are those of its process group."""
    here, size = dist.get_rank(group), dist.get_world_size(group)
    if (rank, world_size) != (here, size):
        of = "" if group is None else "group"
        raise ValueError(
            f"rank={rank}, world_size={world_size} were given, but this process is rank {here} of "
            f"{size}; pass rank=torch.distributed.get_rank({of}), world_size=torch.distributed.get_world_size({of})."
        )


def agree(tensors: dict[str, Tensor | None], loss: str, check: Callable[[], None], exchange: bool, group: Any) -> tuple[int, ...]:
    """How many pairs each rank brings, where every rank's `check` passes and tensors and loss are alike.

    Whatever is wrong on one rank is an error on all of them, instead of a wait that never ends. Ranks may bring different numbers
    of pairs. The exchange costs one small collective and a look at its result, for which a GPU would stop; without it each rank
    speaks for itself, and all must bring as many pairs.
    """
    size = dist.get_world_size(group)
    if not exchange:
        check()
        first = next(tensor for tensor in tensors.values() if tensor is not None)
        return (len(first),) * size
    problem: Exception | None = None
    try:
        check()
    except Exception as error:
        problem = error
    mine = {
        "problem": None if problem is None else _ascii(str(problem))[: LETTER // 4],
        "loss": _ascii(loss)[: LETTER // 4],
        **{name: _described(tensor) for name, tensor in tensors.items() if problem is None},
    }
    letters = _exchanged(mine, group, next(iter(tensors.values())))
    if problem is not None:
        raise problem
    for rank, letter in enumerate(letters):
        if letter["problem"] is not None:
            raise ValueError(f"rank {rank} of {size} stopped, and so all do: {letter['problem']}")
    for rank, letter in enumerate(letters):
        for name, first in letters[0].items():
            if letter[name] != first and not (name in tensors and _fit(first, letter[name])):
                raise ValueError(
                    f"{name} is {_words(first)} on rank 0 and {_words(letter[name])} on rank {rank}; need the same on every "
                    "rank. Use the same loss, model and precision everywhere."
                )
    name = next(name for name, tensor in tensors.items() if tensor is not None)
    return tuple(letter[name][1][0] for letter in letters)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _described(tensor: Any) -> Any:
    return None if tensor is None else [str(tensor.dtype), list(tensor.shape), tensor.requires_grad]


def _fit(first: Any, other: Any) -> bool:
    """Alike but for the number of rows."""
    if first is None or other is None:
        return False
    return bool(first[0] == other[0] and first[1][1:] == other[1][1:] and first[2] == other[2])


def _words(described: Any) -> str:
    if not isinstance(described, list):
        return str(described)
    return f"{described[0]} of shape {tuple(described[1])}{', with a gradient' if described[2] else ''}"


def _exchanged(mine: dict[str, Any], group: Any, features: Any) -> list[dict[str, Any]]:
    """What every rank wrote."""
    backend = str(dist.get_backend(group))
    device = torch.device("cpu")
    if not ("gloo" in backend or "mpi" in backend or backend == "undefined"):
        device = features.device if isinstance(features, Tensor) else torch.device("cuda", torch.cuda.current_device())
    text = json.dumps(mine).encode()[:LETTER]
    letter = torch.zeros(LETTER, dtype=torch.uint8)
    letter[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    letter = letter.to(device)
    everyone = [torch.empty_like(letter) for _ in range(dist.get_world_size(group))]
    with naming_the_lost(group):
        dist.all_gather(everyone, letter, group=group)
    return [json.loads(bytes(each.tolist()).rstrip(b"\0")) for each in everyone]


_losses_of_rank = 0


@contextmanager
def naming_the_lost(group: Any) -> Iterator[None]:
    """Where a collective fails, an error that says which ranks give no sign any more."""
    global _losses_of_rank
    try:
        yield
    except RuntimeError as error:
        _losses_of_rank += 1
        raise RuntimeError(
            f"the ranks could not be gathered: {_who(group)}. A rank that gives none has died, hangs, never called the loss or "
            f"still waits for one that has. ({error})"
        ) from error


def _who(group: Any) -> str:
    """Which ranks leave no sign in the store of the rendezvous."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    names = [f"otter_losses/{_losses_of_rank}/{_global_rank(group, other)}" for other in range(size)]
    try:
        store = dist.distributed_c10d._get_default_store()
        before = store.timeout  # type: ignore[attr-defined]
        store.set_timeout(timedelta(seconds=PATIENCE))
        try:
            store.set(names[rank], "alive")
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and not store.check(names):
                time.sleep(0.1)
            lost = [str(other) for other, name in enumerate(names) if not store.check([name])]
        finally:
            store.set_timeout(before)
    except RuntimeError:
        return f"nor does the store of the rendezvous answer, which lies with global rank 0; no sign of any of the {size} ranks"
    return f"{'rank ' + ', '.join(lost) if lost else 'none'} of {size} gave no sign within {PATIENCE:g} seconds"


def _global_rank(group: Any, rank: int) -> int:
    return rank if group is None else dist.get_global_rank(group, rank)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        full: Tensor = tensor.full_tensor()
        return full

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from torch.distributed.tensor import DTensor, Partial

        shares = DTensor.from_local(gradient / ctx.mesh.size(), ctx.mesh, [Partial()] * ctx.mesh.ndim)
        return shares.redistribute(placements=ctx.placements)


def whole(value: Any) -> Any:
    """A DTensor's numbers on every rank, anything else as it is; the gradient is the mean over the ranks, as FSDP's is."""
    return _Whole.apply(value) if checks.is_sharded(value) else value  # type: ignore[no-untyped-call]
