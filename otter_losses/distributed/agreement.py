"""Ranks of a process group agree on what they bring to a loss; what is wrong on one of them is an error on all."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
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

ALIKE = 1e-2
"""Relative difference of two ranks' scales that is rounding: half precision's, of an exponential taken on different hardware."""


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


def agree(
    tensors: dict[str, Tensor | None],
    numbers: dict[str, Tensor | float | None],
    loss: str,
    check: Callable[[], None],
    exchange: bool,
    group: Any,
) -> tuple[int, ...]:
    """How many pairs each rank brings, where every rank's `check` passes and tensors, numbers and loss are alike.

    Alike: types and widths of tensors, the numbers, and whether a gradient is asked for. Whatever is wrong on one rank
    is an error on all of them, instead of a wait that never ends. Ranks may bring different numbers of pairs. The exchange costs
    one small collective and a look at its result, for which a GPU would stop; without it each rank speaks for itself, and all
    must bring as many pairs.
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
    }
    if problem is None:
        mine |= {name: _described(tensor) for name, tensor in tensors.items()}
        mine |= {name: _valued(number) for name, number in numbers.items()}
    letters = _exchanged(mine, group, next(iter(tensors.values())))
    if problem is not None:
        raise problem
    for rank, letter in enumerate(letters):
        if letter["problem"] is not None:
            raise ValueError(f"rank {rank} of {size} stopped, and so all do: {letter['problem']}")
    for rank, letter in enumerate(letters):
        for name, first in letters[0].items():
            if letter[name] != first and not _fit(first, letter[name]):
                raise ValueError(
                    f"{name} is {_words(first)} on rank 0 and {_words(letter[name])} on rank {rank}; need the same on every "
                    "rank. Use the same loss, model and precision everywhere."
                )
    name = next(name for name, tensor in tensors.items() if tensor is not None)
    return tuple(letter[name][1][0] for letter in letters)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _described(tensor: Tensor | None) -> Any:
    return None if tensor is None else [str(tensor.dtype), list(tensor.shape), _is_differentiated(tensor)]


def _valued(number: Tensor | float | None) -> Any:
    if isinstance(number, Tensor):
        return [float(number.detach()), _is_differentiated(number)]
    return None if number is None else [float(number), False]


def _is_differentiated(tensor: Tensor) -> bool:
    """Whether a backward follows, in which the ranks meet again."""
    return tensor.requires_grad and torch.is_grad_enabled()


def _fit(first: Any, other: Any) -> bool:
    """Alike but for the number of rows, or for rounding."""
    if not (isinstance(first, list) and isinstance(other, list) and first[-1] == other[-1]):
        return False
    if len(first) == 2:
        return math.isclose(first[0], other[0], rel_tol=ALIKE, abs_tol=1e-6)
    return bool(first[0] == other[0] and first[1][1:] == other[1][1:])


def _words(described: Any) -> str:
    if not isinstance(described, list):
        return str(described)
    *what, gradient = described
    words = f"{what[0]:g}" if len(what) == 1 else f"{what[0]} of shape {tuple(what[1])}"
    return f"{words}, with a gradient" if gradient else words


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
    return [_read(rank, each) for rank, each in enumerate(everyone)]


def _read(rank: int, letter: Tensor) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(bytes(letter.tolist()).rstrip(b"\0"))
    except ValueError as error:
        raise RuntimeError(
            f"rank {rank} was in another collective than this loss, and what it sent cannot be read. Every rank must call the "
            "loss as often and between the same collectives; TORCH_DISTRIBUTED_DEBUG=DETAIL finds where they part."
        ) from error
    return read


_failures: Counter[str] = Counter()
"""Of every group's collectives, by its name."""


@contextmanager
def naming_the_lost(group: Any) -> Iterator[None]:
    """Where a collective fails, an error that says which ranks give no sign any more."""
    try:
        yield
    except RuntimeError as error:
        _failures[_name_of(group)] += 1
        raise RuntimeError(
            f"the ranks could not be gathered: {_who(group)}. A rank that gives none has died, hangs, never called the loss or "
            f"still waits for one that has. ({error})"
        ) from error


def _name_of(group: Any) -> str:
    known: Any = dist.group.WORLD if group is None else group
    return str(known.group_name)


def _who(group: Any) -> str:
    """Which ranks leave no sign in the store of the rendezvous."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    failure = f"otter_losses/{_name_of(group)}/{_failures[_name_of(group)]}"
    signs = [f"{failure}/{other}" for other in range(size)]
    lost: list[str] = []

    def look() -> None:
        with suppress(RuntimeError):
            store = dist.distributed_c10d._get_default_store()
            store.set(signs[rank], "alive")
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and not store.check(signs):
                time.sleep(0.1)
            lost[:] = [str(other) for other, sign in enumerate(signs) if not store.check([sign])] or ["none"]

    # A store behind a link that is down answers neither yes nor no, whatever its timeout.
    looking = Thread(target=look, daemon=True)
    looking.start()
    looking.join(2 * PATIENCE)
    if not lost:
        return f"nor does the store of the rendezvous answer, so that nobody knows here which of the {size} ranks are lost"
    return f"{'' if lost == ['none'] else 'rank '}{', '.join(lost)} of {size} gave no sign within {PATIENCE:g} seconds"


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
