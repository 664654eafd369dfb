"""Ranks of a process group agree on what they bring to a loss; what is wrong on one of them is an error on all."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses.distributed.failures import naming_missing_ranks

MESSAGE_BYTES = 2048
"""In which a rank describes to the others what it brings."""

ALIKE = 1e-2
"""Relative difference of two ranks' scales that is rounding: half precision's, of an exponential taken on different hardware."""


class Agreement(NamedTuple):
    """What the ranks found.

    Attributes:
        sizes: how many pairs each rank brings.
        batches: how many different ones they were seen to bring; as many as ranks where nobody looked.
    """

    sizes: tuple[int, ...]
    batches: int


def agree(
    tensors: dict[str, Tensor | None],
    scalars: dict[str, Tensor | float | None],
    loss: str,
    check: Callable[[], None],
    exchange: bool,
    pairs: tuple[Tensor, ...],
    group: Any,
) -> Agreement:
    """What the ranks bring, where every rank's `check` passes and tensors, scalars and loss are alike.

    Alike: types and widths of tensors, the scalars, and whether a gradient is asked for. Whatever is wrong on one rank
    is an error on all of them, instead of a wait that never ends. Ranks may bring different numbers of pairs. The exchange costs
    one small collective and a look at its result, for which a GPU would stop; without it each rank speaks for itself, and all
    must bring as many pairs. Whether ranks bring copies of one batch is told by the bits of `pairs`; none of them: do not tell.
    """
    size = dist.get_world_size(group)
    if not exchange:
        check()
        first = next(tensor for tensor in tensors.values() if tensor is not None)
        return Agreement((len(first),) * size, batches=size)
    problem: Exception | None = None
    try:
        check()
    except Exception as error:
        problem = error
    own_message: dict[str, Any] = {
        "problem": None if problem is None else _ascii(str(problem))[: MESSAGE_BYTES // 4],
        "loss": _ascii(loss)[: MESSAGE_BYTES // 4],
    }
    if problem is None:
        own_message |= {name: _describe_tensor(tensor) for name, tensor in tensors.items()}
        own_message |= {name: _describe_number(number) for name, number in scalars.items()}
        own_message["digest"] = _digest(pairs)
    messages = _exchanged(own_message, group, next(iter(tensors.values())))
    if problem is not None:
        raise problem
    for rank, message in enumerate(messages):
        if message["problem"] is not None:
            raise ValueError(f"rank {rank} of {size} stopped, and so all do: {message['problem']}")
    digests = {message.pop("digest") for message in messages}
    for rank, message in enumerate(messages):
        for name, first in messages[0].items():
            if message[name] != first and not _are_compatible(first, message[name]):
                raise ValueError(
                    f"{name} is {_words(first)} on rank 0 and {_words(message[name])} on rank {rank}; need the same on every "
                    "rank. Use the same loss, model and precision everywhere."
                )
    name = next(name for name, tensor in tensors.items() if tensor is not None)
    sizes = tuple(message[name][1][0] for message in messages)
    return Agreement(sizes, batches=size if None in digests else len(digests))


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _digest(tensors: tuple[Tensor, ...]) -> int | None:
    """Of the tensors' bits."""
    digest: int | None = None
    for tensor in tensors:
        digest = crc32(bytes(tensor.detach().flatten().cpu().view(torch.uint8).numpy()), digest or 0)
    return digest


def _describe_tensor(tensor: Tensor | None) -> Any:
    return None if tensor is None else [str(tensor.dtype), list(tensor.shape), _is_differentiated(tensor)]


def _describe_number(number: Tensor | float | None) -> Any:
    if isinstance(number, Tensor):
        return [float(number.detach()), _is_differentiated(number)]
    return None if number is None else [float(number), False]


def _is_differentiated(tensor: Tensor) -> bool:
    """Whether a backward follows, in which the ranks meet again."""
    return tensor.requires_grad and torch.is_grad_enabled()


def _are_compatible(first: Any, other: Any) -> bool:
    """Alike but for the number of rows, or for rounding."""
    if not (isinstance(first, list) and isinstance(other, list) and first[-1] == other[-1]):
        return False
    if len(first) == 2:
        return math.isclose(first[0], other[0], rel_tol=ALIKE, abs_tol=1e-6)
    return bool(first[0] == other[0] and first[1][1:] == other[1][1:])


def _words(description: Any) -> str:
    if not isinstance(description, list):
        return str(description)
    *what, gradient = description
    words = f"{what[0]:g}" if len(what) == 1 else f"{what[0]} of shape {tuple(what[1])}"
    return f"{words}, with a gradient" if gradient else words


def _exchanged(own_message: dict[str, Any], group: Any, features: Any) -> list[dict[str, Any]]:
    """What every rank wrote."""
    backend = str(dist.get_backend(group))
    device = torch.device("cpu")
    if not ("gloo" in backend or "mpi" in backend or backend == "undefined"):
        device = features.device if isinstance(features, Tensor) else torch.device("cuda", torch.cuda.current_device())
    text = json.dumps(own_message).encode()[:MESSAGE_BYTES]
    message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    message[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    message = message.to(device)
    everyone = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    with naming_missing_ranks(group):
        dist.all_gather(everyone, message, group=group)
    return [_read(rank, each) for rank, each in enumerate(everyone)]


def _read(rank: int, message: Tensor) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(bytes(message.tolist()).rstrip(b"\0"))
    except ValueError as error:
        raise RuntimeError(
            f"rank {rank} was in another collective than this loss, and what it sent cannot be read. Every rank must call the "
            "loss as often and between the same collectives; TORCH_DISTRIBUTED_DEBUG=DETAIL finds where they part."
        ) from error
    return read
