"""The study of trust from the packages to its report."""

from dataclasses import asdict
from pathlib import Path

from benchmarks import markdown
from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.trust.report import report
from benchmarks.studies.trust.run import FIRST_SEED, Audit, judge

CHOSEN = ("all", "20 % shuffled", "40 % shuffled", "60 % shuffled", "40 % within source")
SHARDS = 4
"""For one condition, to see what a search within parts costs."""


def judge_all(*, seeds: int, output: Path, cache: Path, jobs: int) -> None:
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    kinds = [(name, 1) for name in CHOSEN] + [("40 % shuffled", SHARDS)]
    audits = [Audit(name, seed, shards) for name, shards in kinds for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
    judged = run_tasks(judge, problem, audits, jobs=jobs, label="audits", unit="audit")
    facts = {"seeds": seeds, "jobs": jobs, "machine": machine("cpu"), **problem.facts}
    markdown.write(output / "trust", report(judged, facts) + "\n", {**facts, "audits": [asdict(one) for one in judged]})
