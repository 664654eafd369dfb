"""The study of the temperature from the packages to its report."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import markdown
from benchmarks.measure import RESULTS, machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.onednn import use_onednn
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.registered.arms import runs_of
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.registered.run import Shared
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run
from benchmarks.studies.temperature.report import STARTS, report
from benchmarks.studies.temperature.run import Checked, check


def check_all(*, seeds: int, output: Path, cache: Path, jobs: int) -> None:
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    runs = [
        run
        for seed in range(seeds)
        for condition in CONDITIONS.values()
        for run in runs_of(condition, seed)
        if run.method in STARTS
    ]
    checked = run_tasks(_check, Shared(problem, cache), runs, jobs=jobs, label="scales", unit="run")
    registered = json.loads((RESULTS / "registered" / "results.json").read_text(encoding="utf-8"))
    facts = {"machine": machine("cpu"), "seeds": seeds}
    text = report(checked, registered, facts)
    markdown.write(output / "temperature", text + "\n", {**facts, "runs": [asdict(one) for one in checked]})


def _check(shared: Shared, run: Run) -> Checked:
    use_onednn()
    return check(shared.problem, run, shared.cache)
