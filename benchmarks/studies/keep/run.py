"""One training run on all pairs or on some of them, scored on the validation concepts."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.studies.keep.arms import ARMS, rows_of
from benchmarks.studies.registered.arms import ARMS as REGISTERED
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.registered.run import estimate_trust, fitted, given_pairs, validation_mean
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import Run


@dataclass(frozen=True)
class Scored:
    """`kept`: share of the pairs that were trained on. `right`: share of right pairs among these. `validation`: mean of hit@1, 5
    and 10 over both validation sets, per cent."""

    run: Run
    kept: float
    right: float
    validation: float


def train(problem: Problem, run: Run, cache: Path) -> Scored:
    condition, arm = CONDITIONS[run.setting], ARMS[run.method]
    given = given_pairs(problem, condition, run.seed)
    trust, _ = estimate_trust(problem, condition, run.seed, cache)
    right = given == torch.arange(len(given))
    rows = rows_of(arm, trust, right)
    kept = len(rows) / len(given)
    longer = replace(run, epochs=round(run.epochs / kept)) if arm.same_steps else run
    loss = REGISTERED[arm.loss]
    per_pair = {"trust": trust} if loss.trust is not None else {}
    model = fitted(problem, condition, longer, loss.make(), given, per_pair, loss.teacher, condition.start_scale, rows=rows)
    return Scored(run, round(kept, 4), round(right[rows].float().mean().item(), 4), validation_mean(model, problem))
