"""One training run of InfoNCE, and the scales that held-out pairs would rather have."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.registered.arms import ARMS
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.registered.run import model_of
from benchmarks.studies.table.problem import HeldOut, Problem
from benchmarks.studies.table.run import Run
from benchmarks.studies.training.fit import BATCH
from benchmarks.studies.training.heads import TwoHeads
from otter_losses.diagnostics import scale_check


@dataclass(frozen=True)
class Checked:
    """Logit scales. `best`: of held-out pairs with their own captions. `best_as_trained`: with captions as in the training."""

    run: Run
    start: float
    trained: float
    best: float
    best_as_trained: float


def check(problem: Problem, run: Run, cache: Path) -> Checked:
    condition = CONDITIONS[run.setting]
    model = model_of(problem, run, cache)
    trained = model.log_scale.exp().item()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, texts, sources = held_out_features(model, problem)
        given = shuffle_captions(len(images), condition.shuffled, run.seed, sources if condition.within_source else None)
        best, as_trained = (
            scale_check(images, captions, trained, batch_size=BATCH).best_scale for captions in (texts, texts[given])
        )
    return Checked(run, ARMS[run.method].start_scale or condition.start_scale, trained, best, as_trained)


def held_out_features(model: TwoHeads, problem: Problem) -> tuple[Tensor, Tensor, list[str]]:
    """Of one picture and its name for each validation concept, both kinds of pictures together, and each picture's source."""
    pictures, names = zip(*(_one_a_concept(held_out) for held_out in problem.validation.values()), strict=True)
    rows = [row for of in pictures for row in of]
    x, y, _ = model(torch.from_numpy(problem.images[rows]), torch.cat(names))
    return x, y, [problem.sources[row] for row in rows]


def _one_a_concept(held_out: HeldOut) -> tuple[list[int], Tensor]:
    labels = list(dict.fromkeys(held_out.labels))
    pictures = [held_out.pictures[held_out.labels.index(label)] for label in labels]
    return pictures, torch.from_numpy(held_out.names[labels])
