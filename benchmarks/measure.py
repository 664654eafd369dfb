"""Time and peak memory of callables, all in one run, and the machine they ran on."""

import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of every repetition."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.milliseconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.milliseconds, n=4, method="inclusive")
        return (high - low) / self.median


def time_all(contenders: Contenders, repetitions: int, device: str) -> dict[str, Timing]:
    """Interleaved repetitions, so that a disturbance of the machine meets all contenders alike, after one warm-up each."""

    def once(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.accelerator.synchronize()
        return (time.perf_counter() - start) * 1e3

    for run in contenders.values():
        once(run)
    rounds = [{name: once(run) for name, run in contenders.items()} for _ in range(repetitions)]
    return {name: Timing(tuple(found[name] for found in rounds)) for name in contenders}


def peak_in_fresh_process(module: str, *arguments: str) -> int:
    """Bytes that ``python -m module`` with the arguments prints as its last line: a peak needs a process of its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def machine(device: str) -> dict[str, Any]:
    """What ran, on what."""
    name = platform.processor() or platform.machine()
    if device == "cpu" and Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else name
    elif device != "cpu":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else device
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "device": name,
        "capability": torch.backends.cpu.get_cpu_capability() if device == "cpu" else "",
        "threads": torch.get_num_threads() if device == "cpu" else 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }
