"""One training run of the demo: two linear heads over frozen features, with one of the losses.

The learning rate was chosen on the validation concepts by ``benchmarks.studies.demo.choose``.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.hit_at_k import KS, hit_at_k, ranks_after_ties
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.demo.problem import Problem
from benchmarks.studies.found import auc, recall
from benchmarks.studies.training.fit import fit
from benchmarks.studies.training.heads import WIDTH, TwoHeads
from benchmarks.studies.training.losses import METHODS, Method, teacher_of
from otter_losses import RobustLoss
from otter_losses.audit import pair_trust

LEARNING_RATE = 1e-3
TRUSTING = "RobustLoss"
"""The loss that is told which pairs to trust, by an audit of their frozen features."""
ARMS = {**METHODS, TRUSTING: Method(RobustLoss, teacher=True)}


@dataclass(frozen=True)
class Run:
    """One cell of the table for one seed. `probe`: training pairs whose teacher features are wanted afterwards."""

    method: str
    noise: float
    seed: int
    epochs: int = 10
    probe: tuple[int, ...] = ()
    learning_rate: float = LEARNING_RATE


class Audit(NamedTuple):
    """What `pair_trust` says of the training pairs: the share that it takes for wrong, how well its score ranks the shuffled
    ones, and which share of them is among as many pairs of the lowest scores; None where none is shuffled."""

    wrong_share: float
    auc: float | None
    found: float | None


@dataclass(frozen=True)
class Outcome:
    """hit@k in per cent on unseen concepts, the teacher's (image, text) features of the run's probe, and the run's audit."""

    run: Run
    validation: dict[int, float]
    test: dict[int, float]
    logit_scale: float
    probe_features: tuple[NDArray[np.float32], NDArray[np.float32]] | None = field(default=None, repr=False)
    audit: Audit | None = None


def train(problem: Problem, run: Run) -> Outcome:
    """Trains for all epochs and scores the last state: no checkpoint is chosen."""
    images, texts = map(torch.from_numpy, problem.features)
    pairs = torch.tensor(problem.split.training)
    shuffle = torch.tensor(shuffle_captions(len(pairs), run.noise, run.seed))
    given = pairs[shuffle]
    method = ARMS[run.method]
    per_pair, audit = {}, None
    if run.method == TRUSTING:
        judged = pair_trust(images[pairs], texts[given])
        per_pair["alpha"] = judged.alpha()
        right = shuffle == torch.arange(len(pairs))
        audit = Audit(judged.wrong_share, auc(judged.score, right), recall(judged.score, right))

    torch.manual_seed(run.seed)
    model = TwoHeads(nn.Linear(images.shape[1], WIDTH), texts.shape[1])
    teacher = teacher_of(model) if method.teacher else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    fit(model, method.make(), teacher, optimizer, images, texts, pairs, given, run.epochs, run.seed, per_pair)

    with torch.inference_mode():
        x, y, scale = model.eval()(images, torch.from_numpy(problem.names))
        labels = torch.tensor(problem.labels)
        validation, test = (
            hit_at_k(ranks_after_ties(x[rows] @ y.T, labels[rows]).numpy(), KS)
            for rows in (problem.split.validation, problem.split.test)
        )
        probe = None
        if run.probe and teacher is not None:
            rows = torch.tensor(run.probe)
            v, t, _ = teacher(images[pairs[rows]], texts[given[rows]])
            probe = v.numpy(), t.numpy()
    return Outcome(run, validation, test, scale.item(), probe, audit)
