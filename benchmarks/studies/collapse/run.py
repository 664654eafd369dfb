"""One training run of a changed loss, scored on the validation concepts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.studies.collapse.arms import ARMS, SEEN
from benchmarks.studies.registered.conditions import CONDITIONS as REGISTERED
from benchmarks.studies.registered.conditions import Condition
from benchmarks.studies.registered.run import estimate_trust, fitted, given_pairs, validation_mean
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import Run
from benchmarks.studies.training.heads import MAX_SCALE

SHARPEST = Condition("40 % shuffled, scale 100", shuffled=0.4, start_scale=MAX_SCALE)
CONDITIONS = {**REGISTERED, SHARPEST.name: SHARPEST}


@dataclass(frozen=True)
class Watched:
    """`validation`: mean of hit@1, 5 and 10 over both validation sets, per cent. `epochs`: means of what was seen; None for what
    was not there."""

    run: Run
    validation: float
    epochs: list[list[float | None]]


def train(problem: Problem, run: Run, cache: Path) -> Watched:
    condition, loss = CONDITIONS[run.setting], ARMS[run.method]()
    given = given_pairs(problem, condition, run.seed)
    trust, _ = estimate_trust(problem, condition, run.seed, cache)
    per_pair = {"trust": trust, "right": given == torch.arange(len(given))}
    model = fitted(problem, condition, run, loss, given, per_pair, True, condition.start_scale)
    seen = torch.stack(loss.seen).reshape(run.epochs, -1, len(SEEN)).mean(1)
    epochs = [[None if value != value else round(value, 4) for value in row] for row in seen.tolist()]
    return Watched(run, validation_mean(model, problem), epochs)
