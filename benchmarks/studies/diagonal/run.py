"""One training run of an arm, on a setting of the table."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.hit_at_k import KS, hit_at_k
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.diagonal.arms import ARMS, TwoTemperatures, given_back
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import Run, fit_setting, make_model, score
from benchmarks.studies.table.settings import SETTINGS
from benchmarks.studies.training.fit import BATCH
from benchmarks.studies.training.losses import teacher_of
from otter_losses import EMATeacher, OTTERLoss

CHOSEN = ("all", "40 % shuffled")
"""Settings of the table."""


@dataclass(frozen=True)
class Trained:
    """hit@k by test set, and the mass that the wrong diagonals would give back to each given pair of the last batch."""

    run: Run
    test: dict[str, dict[int, float]]
    given_back: NDArray[np.float32]


def train_arm(problem: Problem, run: Run) -> Trained:
    """`run.method` is an arm."""
    model = make_model(problem, SETTINGS[run.setting], run)
    arm = ARMS[run.method]
    if arm is not None:
        model = TwoTemperatures(model)
    teacher = teacher_of(model)
    fit_setting(problem, run, model, OTTERLoss() if arm is None else arm(), teacher)
    with torch.inference_mode():
        test = {name: score(model, problem, test) for name, test in problem.test.items()}
        mass = given_back(*_batch(problem, run, teacher))
    return Trained(run, {name: hit_at_k(ranks, KS) for name, ranks in test.items()}, mass.numpy())


def _batch(problem: Problem, run: Run, teacher: EMATeacher) -> tuple[Tensor, Tensor]:
    """The teacher's features of one training batch, with the captions of the training."""
    setting = SETTINGS[run.setting]
    pairs = torch.tensor(problem.training[run.setting])
    given = pairs[shuffle_captions(len(pairs), setting.shuffled, run.seed)]
    rows = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(run.seed))[:BATCH]
    images, texts = torch.from_numpy(problem.images), torch.from_numpy(problem.texts(setting))
    v, t, *_ = teacher(images[pairs[rows]], texts[given[rows]])
    return v, t
