"""Peak memory beyond the inputs of one contender of `benchmarks.speed.contenders`, alone in a process: prints bytes.

    python -m benchmarks.memory OTTERLoss 32768 512 cpu

On the CPU it is the growth of the resident set's high-water mark (Linux), on a GPU the allocator's peak. Below N of about 1,024
the CPU's number drowns in what the process already holds.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.batch import Batch
from benchmarks.speed import contenders


def reset_peak(device: str) -> int:
    """Forget earlier peaks; bytes held now."""
    if device != "cpu":
        _allocator().reset_peak_memory_stats()
        return int(_allocator().memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Most bytes held since `reset_peak`."""
    return _status("VmHWM") if device == "cpu" else int(_allocator().max_memory_allocated())


def peak_beyond(run: Callable[[], object], device: str) -> int:
    """Bytes that a run takes at its peak beyond what is held before it, as a GPU's allocator counts its own."""
    before = reset_peak(device)
    run()
    return peak(device) - before


def _allocator() -> Any:
    return torch.cuda if torch.cuda.is_available() else torch.accelerator


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}; CPU memory is measured on Linux only. Use --no-memory.")
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("pairs", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("device")
    options = parser.parse_args()
    for pairs in (64, options.pairs):
        batch = Batch(pairs, options.width, options.device)
        runs = {**contenders.losses(batch), **contenders.targets(batch, with_pot=options.name.startswith("POT"))}
        most = peak_beyond(runs[options.name], options.device)
    print(most)
