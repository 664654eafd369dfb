"""The top kernels of one step by device time, against the device's own ceilings.

The rate of a vendor's product is known from its shapes; the bandwidth of a kernel of this library from what it is declared to
move for each entry of the N x N matrix (`benchmarks.kernels.declared`), times the sweeps it makes.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernels.declared import row_blocks, traffic

PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::_scaled_mm": 0, "aten::addmm": 1, "aten::addmm_": 1}
"""Operators, and which of their arguments is the first factor."""


def profiled(
    run: Callable[[], object], device: str, pairs: int, itemsize: int, teacher: bool = True, top: int = 8
) -> dict[str, Any]:
    """Kernels and products of one run after a warm-up, the slowest first, in milliseconds."""
    run()
    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True) as recorded:
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
                **_moved(name, calls, ms, pairs, itemsize, teacher),
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


def _moved(kernel: str, calls: int, ms: float, pairs: int, itemsize: int, teacher: bool) -> dict[str, float]:
    """Bytes that the kernel must move, and the bandwidth that makes, where it is one of this library's."""
    each = bytes_per_entry(traffic(kernel), itemsize, teacher)
    if not each or not ms:
        return {}
    moved = each * float(pairs) ** 2 * sweeps(calls, pairs)
    return {"bytes": moved, "bytes_per_s": moved / ms * 1e3}


def sweeps(calls: int, pairs: int) -> float:
    """How often the whole matrix was walked over: a sweep is one launch a row block, or one launch where it fits a block."""
    blocks = row_blocks(pairs)
    return calls / blocks if calls >= blocks else float(calls)


def bytes_per_entry(traffic: object, itemsize: int, teacher: bool = True) -> float | None:
    """Of a line of `traffic`: a number, or words such as "read cosines and K, write G"; no K without a teacher."""
    if isinstance(traffic, (int, float)):
        return float(traffic)
    if not isinstance(traffic, str):
        return None
    sizes = {"k": itemsize if teacher else 0, "codes": 2 if teacher else 0, "g": itemsize, "cosines": 4, "logits": 4, "block": 4}
    return float(sum(sizes.get(word, 0) for word in re.findall(r"\w+", traffic.lower()))) or None
