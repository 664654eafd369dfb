"""The collapse study from the packages to its report."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from benchmarks import markdown
from benchmarks.measure import machine
from benchmarks.studies.collapse.arms import ARMS, GUARDED, SEEN, UNGUARDED
from benchmarks.studies.collapse.report import report
from benchmarks.studies.collapse.run import CONDITIONS, SHARPEST, Watched, train
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.registered.run import Shared
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run

WHERE = "40 % shuffled, scale 49.4"
CHECKED = (WHERE, SHARPEST.name, "all, scale 49.4", "all", "40 % shuffled", "60 % shuffled")
"""Where the guard is compared with none."""


def run_all(*, seeds: Sequence[int], fresh: Sequence[int], output: Path, cache: Path, jobs: int) -> None:
    """Seed by seed; the report is written after each, so that a study that is stopped has said what it found."""
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    found: list[Watched] = []
    checked: list[Watched] = []
    for seed, other in zip_longest(seeds, fresh):
        blocks = (
            (found, [Run(WHERE, arm, seed) for arm in ARMS if seed is not None]),
            (checked, [Run(condition, arm, other) for condition in CHECKED for arm in (UNGUARDED, GUARDED) if other is not None]),
        )
        for watched, runs in blocks:
            if runs:
                label = f"seed {runs[0].seed}"
                watched += run_tasks(_train, Shared(problem, cache), runs, jobs=jobs, label=label, unit="run")
                _write(output, found, checked)


def _write(output: Path, found: Sequence[Watched], checked: Sequence[Watched]) -> None:
    facts = {"seen": SEEN, "machine": machine("cpu")}
    runs = {"one change": [asdict(one) for one in found], "guard": [asdict(one) for one in checked]}
    markdown.write(output / "collapse", report(found, checked, facts) + "\n", {**facts, **runs})


def _train(shared: Shared, run: Run) -> Watched:
    return train(shared.problem, run, shared.cache)
