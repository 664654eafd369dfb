"""One audit of a condition's pairs, and how well it tells the shuffled ones."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.found import auc
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.registered.run import given_pairs
from benchmarks.studies.table.problem import Problem
from otter_losses.audit import pair_trust

FIRST_SEED = 102
"""The registered run's seeds are others."""


@dataclass(frozen=True)
class Audit:
    condition: str
    seed: int
    shards: int = 1
    """Random parts of the pairs within which neighbours are sought."""


@dataclass(frozen=True)
class Judged:
    """`auc`: the chance that a right pair scores above a shuffled one. Where none is shuffled it is None, as is their trust.
    `histogram`: counts of right and of shuffled pairs between the edges of bins of scores.
    """

    audit: Audit
    pairs: int
    auc: float | None
    trust_right: float
    trust_wrong: float | None
    wrong_share: float
    interval: tuple[float, float]
    histogram: dict[str, list[float]]
    seconds: float


EDGES = torch.linspace(-4, 6, 51)
"""Of the bins of scores; what lies outside counts in the outermost."""


def histogram(score: Tensor, right: Tensor) -> dict[str, list[float]]:
    """How many right and wrong pairs have which score."""
    of = {"right": score[right], "wrong": score[~right]}
    inside = {name: values.clamp(float(EDGES[0]), float(EDGES[-1])) for name, values in of.items()}
    counts = {name: torch.histogram(values, EDGES).hist.tolist() for name, values in inside.items()}
    return {"edges": [round(edge, 3) for edge in EDGES.tolist()], **counts}


def judge(problem: Problem, audit: Audit) -> Judged:
    condition = CONDITIONS[audit.condition]
    pairs = np.array(problem.training[condition.name])
    given = given_pairs(problem, condition, audit.seed)
    started = time.process_time()
    report = pair_trust(problem.images[pairs], problem.texts(condition)[pairs[given.numpy()]], shards=audit.shards)
    seconds = time.process_time() - started
    right = given == torch.arange(len(given))
    return Judged(
        audit,
        len(pairs),
        auc(report.score, right),
        report.trust[right].mean().item(),
        None if right.all() else report.trust[~right].mean().item(),
        report.wrong_share,
        report.wrong_share_interval,
        histogram(report.score, right),
        seconds,
    )
