"""From the packages to the report."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import otter_losses
from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection, load_pictures
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.table.problem import Problem, build_problem
from benchmarks.studies.table.run import Outcome, Run, train
from benchmarks.studies.table.statistics import collect, compare
from benchmarks.studies.training.losses import METHODS, OURS


def run_settings(
    settings: Sequence[str], *, seeds: int, epochs: int, finetune: bool, output: Path, cache: Path, jobs: int, started: float
) -> None:
    """Trains seed by seed and writes the report after each, so that a run that is stopped has said what it found."""
    from benchmarks.studies.table.plots import plot_differences
    from benchmarks.studies.table.report import write_report

    output.mkdir(parents=True, exist_ok=True)
    collection = load_collection(cache, jobs)
    problem = build_problem(collection)
    device = "cuda" if finetune and torch.cuda.is_available() else "cpu"
    if finetune:
        problem = replace(problem, images=load_pictures(cache, jobs))
    pictures = Counter(pair.source for pair in collection.pairs)
    loaded = time.perf_counter()
    print(describe(problem))

    outcomes: list[Outcome] = []
    for seed in range(seeds):
        runs = [Run(setting, method, seed, epochs, None, finetune, device) for setting in settings for method in METHODS]
        if finetune:  # one process at a time holds the encoder
            for run in runs:
                outcomes.append(train(problem, run))
                print(f"{run.setting}, {run.method}, seed {run.seed}", flush=True)
        else:
            outcomes += run_tasks(train, problem, runs, jobs=jobs, label=f"seed {seed}", unit="run")
        found = collect(outcomes)
        concepts = {name: test.labels for name, test in problem.test.items()}
        compared = {rival: compare(found, rival, concepts) for rival in METHODS if rival != OURS}
        facts: dict[str, Any] = {
            "settings": settings,
            "seeds": seed + 1,
            "epochs": epochs,
            "finetune": finetune,
            "jobs": jobs,
            "seconds": {"loading": round(loaded - started, 1), "training": round(time.perf_counter() - loaded, 1)},
            "otter_losses": otter_losses.__version__,
            "machine": machine(device),
            "numpy": np.__version__,
            "pictures": pictures,
            "tests": {name: {"pictures": len(test.pictures), "names": len(test.names)} for name, test in problem.test.items()},
            **problem.facts,
        }
        text = write_report(output, found, compared, outcomes, facts)
        encoders = "fine-tuned encoder" if finetune else "frozen encoders"
        title = f"Drawn pictures, {encoders}, {seed + 1} seeds"
        plot_differences(output / "differences.png", compared, title)
    print(f"\n{text}\n\nWritten to {output}/: table.md, differences.png, results.json.")


def describe(problem: Problem) -> str:
    facts = problem.facts
    tests = "; ".join(
        f"{name}: {len(test.pictures):,} pictures, {len(test.names):,} names" for name, test in problem.test.items()
    )
    trained = ", ".join(f"{name}: {count:,}" for name, count in facts["training_pairs"].items())
    return (
        f"Drawn pictures, no photographs. Training pairs: {trained}; dropped {facts['dropped_by_name']} with a held-out name and "
        f"{facts['dropped_by_picture']} that look like a held-out picture. Test: {tests}."
    )
