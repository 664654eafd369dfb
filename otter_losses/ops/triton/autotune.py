"""Which tile a kernel is launched with: tried once for a width and a device, then remembered."""

import functools
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from otter_losses.ops import cache
from otter_losses.ops.triton.launch import Tile

Run = Callable[[Tile], object]

LEAST_TUNED = 1 << 22
"""Elements of a block below which the last tile is taken untried."""

REPETITIONS = 3
"""Timed runs of every choice."""


def fastest(name: str, like: Tensor, shape: tuple[int, int], choices: Sequence[Tile], run: Run | None) -> Tile:
    """The fastest of the choices for a kernel over a block of that shape, read from `like`: timed once, then remembered on disk.

    A choice holds for one device, dtype and number of columns. `run` launches with a tile as often as one likes and changes
    nothing by it; None forbids a trial. For small blocks it is the last. Where determinism is asked for
    (`torch.use_deterministic_algorithms`) and where the environment says ``OTTER_LOSSES_AUTOTUNE=0``, it is the first; so it is
    without a trial, or under graph capture, where nothing was chosen before.
    """
    if len(choices) == 1 or not like.is_cuda or shape[0] * shape[1] < LEAST_TUNED:
        return choices[-1]
    if os.environ.get("OTTER_LOSSES_AUTOTUNE") == "0" or torch.are_deterministic_algorithms_enabled():
        return choices[0]
    device = _name(like.device)
    key = f"{name}, {like.dtype}, 2^{(shape[1] - 1).bit_length()} columns"
    known = _known(device)
    if known.get(key) in choices:
        return known[key]
    if run is None or torch.cuda.is_current_stream_capturing():
        return choices[0]
    with torch.cuda.device(like.device):
        times = _times(run, choices)
    known[key] = choices[times.index(min(times))]
    _save(device, known)
    return known[key]


_name = functools.cache(torch.cuda.get_device_name)


def _times(run: Run, choices: Sequence[Tile]) -> list[float]:
    """Of every choice, in milliseconds; infinite of one that this device or Triton cannot launch, unless that is all of them."""
    times: list[float] = []
    failure: Exception | None = None
    for tile in choices:
        try:
            times.append(_milliseconds(run, tile))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = error
            times.append(math.inf)
    if failure is not None and min(times) == math.inf:
        raise failure
    return times


def _milliseconds(run: Run, tile: Tile) -> float:
    run(tile)  # compiles
    times: list[float] = []
    for _ in range(REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run(tile)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


_by_device: dict[str, dict[str, Tile]] = {}


def _file(device: str) -> str:
    import triton

    name = "".join(letter if letter.isalnum() else "_" for letter in device)
    return f"tiles-{name}-triton{triton.__version__}.json"


def _known(device: str) -> dict[str, Tile]:
    if device not in _by_device:
        stored = cache.load(_file(device))
        try:
            read = {} if stored is None else json.loads(stored)
            _by_device[device] = {key: {name: int(size) for name, size in tile.items()} for key, tile in read.items()}
        except (ValueError, AttributeError, TypeError):
            _by_device[device] = {}
    return _by_device[device]


def _save(device: str, known: dict[str, Tile]) -> None:
    cache.store(_file(device), json.dumps(known, indent=1).encode())
