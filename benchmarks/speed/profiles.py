"""The top kernels of one step by device time, against the device's own ceilings.

The rate of a vendor's product is known from its shapes; the bandwidth of a kernel of this library from the blocks of N x N
matrices that its launches were given, and how often it is declared to walk over them (`benchmarks.kernels.declared`).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernels.declared import bytes_moved

PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::_scaled_mm": 0, "aten::addmm": 1, "aten::addmm_": 1}
"""Operators, and which of their arguments is the first factor."""


def profiled(run: Callable[[], object], device: str, top: int = 8) -> dict[str, Any]:
    """Kernels and products of one run after a warm-up, the slowest first, in milliseconds."""
    run()
    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True) as recorded, bytes_moved() as moved:
        run()
        if device != "cpu":
            torch.cuda.synchronize()
    kernels = _kernels(recorded.events(), device)
    total = sum(milliseconds for milliseconds, _ in kernels.values())
    ranked = sorted(kernels.items(), key=lambda item: -item[1][0])[:top]
    return {
        "device_ms": total,
        "launches": sum(calls for _, calls in kernels.values()),
        "kernels": [
            {
                "kernel": name,
                "ms": ms,
                "calls": calls,
                "share": ms / total if total else 0.0,
                **_bandwidth(moved[name], ms),
            }
            for name, (ms, calls) in ranked
        ],
        "products": _products(recorded.key_averages(group_by_input_shape=True), device)[:top],
    }


def _kernels(events: Iterable[Any], device: str) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches by kernel; on the CPU, operators stand for kernels."""
    wanted = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False):
            spent = event.self_cpu_time_total if device == "cpu" else event.time_range.elapsed_us()
            times[event.name].append(spent / 1e3)
    return {name: (sum(found), len(found)) for name, found in times.items()}


def _products(averages: Iterable[Any], device: str) -> list[dict[str, Any]]:
    """Matrix products by shape, with the operations a second that they reach."""
    found = []
    for row in averages:
        if row.key not in PRODUCTS:
            continue
        first = PRODUCTS[row.key]
        a, b = row.input_shapes[first : first + 2]
        spent = (row.self_cpu_time_total if device == "cpu" else row.self_device_time_total) / 1e3
        if spent <= 0:  # the operator's kernel is counted under another
            continue
        operations = 2.0 * row.count * math.prod(a) * b[-1]
        found.append(
            {
                "product": f"{_text(a)} @ {_text(b)}",
                "calls": row.count,
                "ms": spent,
                "operations_per_s": operations / spent * 1e3,
            }
        )
    return sorted(found, key=lambda item: -item["ms"])


def _text(shape: list[int]) -> str:
    return " x ".join(f"{length:,}" for length in shape)


def _bandwidth(moved: int, ms: float) -> dict[str, float]:
    return {"bytes": moved, "bytes_per_s": moved / ms * 1e3} if moved and ms else {}
