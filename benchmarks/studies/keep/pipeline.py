"""The study of keeping and weighing from the packages to its report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import markdown
from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.keep.arms import ARMS
from benchmarks.studies.keep.report import report
from benchmarks.studies.keep.run import Scored, train
from benchmarks.studies.onednn import use_onednn
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.registered.run import Shared
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run

SETTINGS = ("all", "20 % shuffled", "40 % shuffled", "60 % shuffled", "40 % within source", "40 % shuffled, 30 epochs")


def run_all(*, seeds: Sequence[int], output: Path, cache: Path, jobs: int) -> None:
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    runs = [Run(setting, arm, seed, CONDITIONS[setting].epochs) for seed in seeds for setting in SETTINGS for arm in ARMS]
    scored = run_tasks(_train, Shared(problem, cache), runs, jobs=jobs, label="runs", unit="run")
    facts = {"machine": machine("cpu")}
    markdown.write(output / "keep", report(scored, facts) + "\n", {**facts, "runs": [asdict(one) for one in scored]})


def _train(shared: Shared, run: Run) -> Scored:
    use_onednn()
    return train(shared.problem, run, shared.cache)
