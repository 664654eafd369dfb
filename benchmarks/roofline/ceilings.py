"""What the device itself reaches in this run: the rates that times are held against."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measure import once_on_device
from benchmarks.roofline.chips import Chip

PRODUCT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def measure(device: str, copied: int = 4 << 30, size: int = 8192, repetitions: int = 10) -> dict[str, Any]:
    """Bytes a second, read and written, of a large copy; operations a second of a square product of random numbers; medians."""
    source = torch.randint(-128, 128, (copied,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    found: dict[str, Any] = {"copy_bytes_per_s": 2 * copied / _median(target.copy_, (source,), device, repetitions)}
    del source, target
    for dtype in PRODUCT_DTYPES:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _median(partial(torch.mm, out=out), (a, b), device, repetitions)
        found[f"{str(dtype).removeprefix('torch.')}_operations_per_s"] = 2 * size**3 / seconds
    return found


def _median(function: Callable[..., object], arguments: tuple[Any, ...], device: str, repetitions: int) -> float:
    def run() -> object:
        return function(*arguments)

    for _ in range(3):
        once_on_device(run, device)
    return statistics.median(once_on_device(run, device) for _ in range(repetitions)) / 1e3


def chip(found: dict[str, Any]) -> Chip:
    """The device as a chip whose rates are those measured."""
    return Chip(
        "this device",
        found["copy_bytes_per_s"],
        found["bfloat16_operations_per_s"],
        found["float32_operations_per_s"],
        "measured in this run",
    )
