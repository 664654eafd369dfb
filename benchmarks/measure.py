"""Time and peak memory of callables, all in one run, and the machine they ran on."""

import argparse
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

    def row(self) -> dict[str, Any]:
        """For a table's JSON."""
        return {"median_ms": self.median, "spread": self.spread, "milliseconds": self.milliseconds}


def once(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one run by the clock, from an idle device until it is idle again: the host's share is in it."""
    _synchronise(device)
    begin = time.perf_counter()
    run()
    _synchronise(device)
    return (time.perf_counter() - begin) * 1e3


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def once_on_device(run: Callable[[], object], device: str) -> float:
    """Milliseconds between two events of a CUDA device around one run; elsewhere those of the clock."""
    if not device.startswith("cuda"):
        return once(run, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def present(device: str) -> str:
    """A device as an argument of a command: an error where torch does not see it."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"the device is {device}; need one that torch sees, and it sees no CUDA device. Take a machine with a GPU, or "
            "--device cpu and small --pairs to try the machinery."
        )
    return device


def time_all(contenders: Contenders, repetitions: int, device: str) -> dict[str, Timing]:
    """Interleaved repetitions, so that a disturbance of the machine meets all contenders alike, after one warm-up each."""
    for run in contenders.values():
        once(run, device)
    rounds = [{name: once(run, device) for name, run in contenders.items()} for _ in range(repetitions)]
    return {name: Timing(tuple(found[name] for found in rounds)) for name in contenders}


def time_graph(run: Callable[[], object], repetitions: int, device: str, aim_ms: float = 20.0) -> Timing:
    """The same work as a CUDA graph, without the host that launches it; each time is of replays that take about `aim_ms`."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # graph memory: to be held while it is replayed
    graph.replay()
    replays = max(1, min(10, int(aim_ms / once_on_device(graph.replay, device))))

    def replay() -> None:
        for _ in range(replays):
            graph.replay()

    timing = Timing(tuple(once_on_device(replay, device) / replays for _ in range(repetitions)))
    del kept
    return timing


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
