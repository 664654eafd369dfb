"""Time and peak memory of the losses and of the targets alone, against the loss people run today. For GPUs: `benchmarks.gpu`.

    python -m benchmarks.speed                  # N = 512 to 8,192; about 12 minutes on 2 cores
    python -m benchmarks.speed --pairs 512 2048 --repetitions 15

Prints a table and writes it, with every repetition's time, to ``benchmarks/results/speed-DEVICE.{json,md}``. Ratios are of
medians within one run; "IQR" is the interquartile range over the median. Memory is the peak beyond the inputs, in N x N
float32 matrices; on the CPU each is measured in a process of its own.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import markdown
from benchmarks.batch import Batch
from benchmarks.measure import RESULTS, machine, peak_in_fresh_process, time_all
from benchmarks.speed import contenders
from benchmarks.speed.memory import peak_beyond


def rows_for(pairs: int, width: int, device: str, repetitions: int, memory: bool, with_pot: bool) -> list[dict[str, Any]]:
    """One row a contender at this size; the losses are one comparison, the targets another."""
    batch = Batch(pairs, width, device)
    rows: list[dict[str, Any]] = []
    for group, runs, base in (
        ("loss", contenders.losses(batch), "released OTTER"),
        ("targets", contenders.targets(batch, with_pot), "released targets"),
    ):
        timings = time_all(runs, repetitions, device)
        for name, timing in timings.items():
            most = _peak(name, runs[name], pairs, width, device) if memory else None
            rows.append(
                {"pairs": pairs, "width": width, "group": group, "name": name, "base": base, "peak_bytes": most, **timing.row()}
            )
    return rows


def _peak(name: str, run: Callable[[], object], pairs: int, width: int, device: str) -> int:
    """Bytes beyond the inputs. A GPU's allocator counts its own; the CPU's resident set needs a process of its own."""
    if device == "cpu":
        return peak_in_fresh_process("benchmarks.memory", name, str(pairs), str(width), device)
    return peak_beyond(run, device)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with each ratio beside its medians."""
    medians = {(row["pairs"], row["name"]): row["median_ms"] for row in rows}
    lines = []
    for row in rows:
        n, median = row["pairs"], row["median_ms"]
        against = f"{median / medians[n, 'eager InfoNCE']:.2f}" if row["group"] == "loss" else ""
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / (4 * n * n):.1f}"
        gain = f"{medians[n, row['base']] / median:.2f}"
        lines.append([f"{n:,}", row["name"], f"{median:,.1f}", f"{row['spread']:.0%}", gain, against, peak])
    heads = ["N", "what", "median ms", "IQR", "released / this", "this / eager InfoNCE", "peak, N x N fp32"]
    return markdown.table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 2048, 4096, 8192], help="batch sizes N")
    parser.add_argument("--width", type=int, default=512, help="feature width D")
    parser.add_argument("--repetitions", type=int, default=0, help="timed repetitions; by default fewer for larger N")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks, which take a process each")
    parser.add_argument("--output", type=Path, default=None, help="where to write, without ending")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with_pot = importlib.util.find_spec("ot") is not None
    if not with_pot:
        print("POT is not installed, so its row is left out: pip install -e '.[bench]'")
    about = machine(options.device)
    rows: list[dict[str, Any]] = []
    for pairs in options.pairs:
        repetitions = options.repetitions or max(3, min(21, 40_000 // pairs))
        rows += rows_for(pairs, options.width, options.device, repetitions, not options.no_memory, with_pot)
        print(f"N = {pairs:,} done", flush=True)
    text = f"{markdown.heading(about)}; D = {options.width}, float32, forward + backward\n\n{table(rows)}\n"
    markdown.write(options.output or RESULTS / f"speed-{options.device}", text, {"machine": about, "rows": rows})
