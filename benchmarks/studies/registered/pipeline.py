"""From the packages to the report, seed by seed, with whatever earlier calls have finished."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.onednn import use_onednn
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.registered import ledger
from benchmarks.studies.registered.arms import runs_of
from benchmarks.studies.registered.conditions import CONDITIONS, SEEDS
from benchmarks.studies.registered.run import estimate_trust, train
from benchmarks.studies.table.problem import Problem, build_problem
from benchmarks.studies.table.run import Run

LEDGER = "runs.jsonl"
SECONDS = 13.0
"""Of one core that a run of 10 epochs takes, until one like it has been measured."""


class Shared(NamedTuple):
    problem: Problem
    ledger: Path
    cache: Path
    commit: str


def run_all(*, output: Path, cache: Path, jobs: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    shared = Shared(problem, output / LEDGER, cache, str(machine("cpu")["commit"]))
    for seed in SEEDS:
        lines = ledger.read(shared.ledger)
        print(reckoning(lines), flush=True)
        missing = missing_runs(lines, [seed])
        if missing:
            data = {CONDITIONS[run.setting].data: run.setting for run in missing}
            trusts = [(name, seed) for name in data.values()]
            run_tasks(_trust, shared, trusts, jobs=jobs, label=f"trust {seed}", unit="data")
            run_tasks(_train, shared, missing, jobs=jobs, label=f"seed {seed}", unit="run")
    print(reckoning(ledger.read(shared.ledger)))


def _trust(shared: Shared, task: tuple[str, int]) -> None:
    name, seed = task
    estimate_trust(shared.problem, CONDITIONS[name], seed, shared.cache)


def _train(shared: Shared, run: Run) -> None:
    use_onednn()
    started = time.process_time()
    outcome = train(shared.problem, run, shared.cache)
    ledger.append(shared.ledger, outcome, time.process_time() - started, shared.commit)


def all_runs(seeds: Sequence[int] = SEEDS) -> list[Run]:
    """A seed's runs before the next one's, so that whole seeds come first."""
    return [run for seed in seeds for condition in CONDITIONS.values() for run in runs_of(condition, seed)]


def missing_runs(lines: Sequence[ledger.Line], seeds: Sequence[int] = SEEDS) -> list[Run]:
    done = {ledger.run_of(line) for line in lines}
    return [run for run in all_runs(seeds) if run not in done]


def reckoning(lines: Sequence[ledger.Line]) -> str:
    """How many runs are in, what they took and what the rest will."""
    measured = {(line["setting"], line["method"]): line["seconds"] for line in lines}
    missing = missing_runs(lines)
    rest = sum(measured.get((run.setting, run.method), SECONDS * run.epochs / 10) for run in missing)
    spent = sum(line["seconds"] for line in lines)
    return (
        f"{len(lines)} of {len(all_runs())} runs, {spent / 3600:.2f} hours of one core; "
        f"{len(missing)} are missing, about {rest / 3600:.2f} hours of one core."
    )
