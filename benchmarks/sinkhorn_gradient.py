"""The gradient of `sinkhorn_knopp` by its analytic way back through the rounds, and by autograd through the same rounds.

    python -m benchmarks.sinkhorn_gradient

Forward and backward, float32, on one CPU thread, both ways in turn; peaks are bytes beyond the scores, in matrices of their size
(the resident set's growth in a process of its own, Linux). Writes ``benchmarks/results/sinkhorn-gradient-cpu.{json,md}``.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import markdown
from benchmarks.measure import RESULTS, machine, time_all
from benchmarks.speed.memory import peak_beyond
from otter_losses import sinkhorn_knopp
from otter_losses.ops.eager import matching

CASES = ((512, 5, 0.15), (512, 20, 0.15), (512, 100, 0.15), (2048, 20, 0.15), (512, 20, 0.01), (2048, 20, 0.01))
"""N, rounds and epsilon, of normal scores over 2: at 0.01 they take logarithms."""

LEAST_PEAK = 2048
"""N from which on a peak stands out from what the process holds."""


def analytic(scores: Tensor, rounds: int, epsilon: float, gradient: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(sinkhorn_knopp(scores, epsilon, rounds, backend="torch"), scores, gradient)
    return found


def through_rounds(scores: Tensor, rounds: int, epsilon: float, gradient: Tensor) -> Tensor:
    marginal = torch.full((len(scores),), 1 / len(scores))
    solution = matching.solve(scores, marginal, marginal, None, matching.Task(epsilon, rounds, None))
    (found,) = torch.autograd.grad(solution.plan, scores, gradient)
    return found


WAYS = {"analytic": analytic, "autograd": through_rounds}


def run_of(name: str, size: int, rounds: int, epsilon: float) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores, gradient = torch.randn(2, size, size, generator=generator) / 2
    return partial(WAYS[name], scores.requires_grad_(), rounds, epsilon, gradient)


def lone_peak(name: str, size: int, rounds: int, epsilon: float) -> float:
    """In matrices; of a process of its own, in which what is freed does not stay resident (glibc's allocator)."""
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"), ProcessPoolExecutor(1, get_context("spawn")) as alone:
        return alone.submit(_peak, name, size, rounds, epsilon).result()


def _peak(name: str, size: int, rounds: int, epsilon: float) -> float:
    torch.set_num_threads(1)
    run_of(name, 8, rounds, epsilon)()
    return peak_beyond(run_of(name, size, rounds, epsilon), "cpu") / (4 * size**2)


def measured(size: int, rounds: int, epsilon: float, repetitions: int) -> dict[str, Any]:
    """Times of both ways in turn, their peaks where the process does not drown them, and how far they are apart."""
    runs = {name: run_of(name, size, rounds, epsilon) for name in WAYS}
    ours, other = (run() for run in runs.values())
    row: dict[str, Any] = {"size": size, "rounds": rounds, "epsilon": epsilon}
    row["difference"] = float((ours - other).norm() / other.norm())
    del ours, other
    for name, timing in time_all(dict(runs), repetitions, "cpu").items():
        row[name] = timing.row()
        if size >= LEAST_PEAK:
            row[name]["matrices"] = lone_peak(name, size, rounds, epsilon)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        other, ours = row["autograd"], row["analytic"]
        times = [f"{way['median_ms']:.3g} ({way['spread']:.0%})" for way in (other, ours)]
        peaks = [f"{way['matrices']:.1f}" if "matrices" in way else "" for way in (other, ours)]
        ratio = f"{other['median_ms'] / ours['median_ms']:.1f}"
        sizes = [f"{row['size']:,}", str(row["rounds"]), str(row["epsilon"])]
        lines.append([*sizes, *times, ratio, *peaks, f"{row['difference']:.0e}"])
    heads = ["N", "rounds", "epsilon", "autograd, ms", "analytic, ms", "autograd / analytic"]
    return markdown.table([*heads, "autograd, matrices", "analytic, matrices", "difference"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", help="only these N")
    parser.add_argument("--output", type=Path, default=RESULTS / "sinkhorn-gradient-cpu", help="where to write, without ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(*case, options.repetitions) for case in CASES if options.sizes is None or case[0] in options.sizes]
    where = machine("cpu")
    text = (
        f"`python -m benchmarks.sinkhorn_gradient` on {markdown.heading(where)}.\n\nForward and backward, float32; medians "
        "(interquartile range over the median). Matrices: peak beyond the scores, the plan and the gradient included.\n\n"
        f"{table(rows)}\n"
    )
    markdown.write(options.output, text, {"machine": where, "rows": rows})


if __name__ == "__main__":
    main()
