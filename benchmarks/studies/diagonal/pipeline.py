"""The diagonal study from the table's problem to its report."""

import time
from pathlib import Path

from benchmarks import markdown
from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.diagonal.arms import ARMS, RANKS
from benchmarks.studies.diagonal.report import report, row
from benchmarks.studies.diagonal.run import CHOSEN, train_arm
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run
from benchmarks.studies.training.fit import BATCH


def run_arms(*, seeds: int, epochs: int, output: Path, cache: Path, jobs: int) -> None:
    problem = build_problem(load_collection(cache, jobs))
    started = time.perf_counter()
    runs = [Run(setting, arm, seed, epochs) for seed in range(seeds) for setting in CHOSEN for arm in ARMS]
    trained = run_tasks(train_arm, problem, runs, jobs=jobs, label="training", unit="run")
    facts = {
        "seeds": seeds,
        "epochs": epochs,
        "ranks": RANKS,
        "batch": BATCH,
        "seconds": round(time.perf_counter() - started, 1),
        "jobs": jobs,
        "machine": machine("cpu"),
        **problem.facts,
    }
    markdown.write(output / "diagonal", report(trained, facts) + "\n", {**facts, "runs": [row(one) for one in trained]})
