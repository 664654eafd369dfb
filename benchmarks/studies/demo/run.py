"""One training run of the demo: two linear heads over frozen features, with one of the losses.

The learning rate was chosen on the validation concepts by ``benchmarks.studies.demo.choose``.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.hit_at_k import KS, hit_at_k, ranks_after_ties
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.demo.problem import Problem
from benchmarks.studies.training.fit import fit
from benchmarks.studies.training.heads import WIDTH, TwoHeads
from benchmarks.studies.training.losses import METHODS, teacher_of

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Run:
    """One cell of the table for one seed. `probe`: training pairs whose teacher features are wanted afterwards."""

    method: str
    noise: float
    seed: int
    epochs: int = 10
    probe: tuple[int, ...] = ()
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class Outcome:
    """hit@k in per cent on unseen concepts, and the teacher's (image, text) features of the run's probe."""

    run: Run
    validation: dict[int, float]
    test: dict[int, float]
    logit_scale: float
    probe_features: tuple[NDArray[np.float32], NDArray[np.float32]] | None = field(default=None, repr=False)


def train(problem: Problem, run: Run) -> Outcome:
    """Trains for all epochs and scores the last state: no checkpoint is chosen."""
    images, texts = map(torch.from_numpy, problem.features)
    pairs = torch.tensor(problem.split.training)
    given = pairs[shuffle_captions(len(pairs), run.noise, run.seed)]
    method = METHODS[run.method]

    torch.manual_seed(run.seed)
    model = TwoHeads(nn.Linear(images.shape[1], WIDTH), texts.shape[1])
    teacher = teacher_of(model) if method.teacher else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    fit(model, method.make(), teacher, optimizer, images, texts, pairs, given, run.epochs, run.seed)

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
    return Outcome(run, validation, test, scale.item(), probe)
