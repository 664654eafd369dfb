"""OTTER as the paper has it and as the released code trains it over ranks, which takes wrong entries out of the transport.

Over ranks the released code takes the wrong entries out on every rank but the first, and sends no gradient through what it
gathered. `OneProcess` has `otter_losses.official` compute all ranks' rows in one process: the gradient of the mean over the rows
is the one that DDP's mean over the ranks gives.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.studies.training.heads import MAX_SCALE, TwoHeads
from benchmarks.studies.training.losses import ALPHA, EPSILON, GAMMA, ITERATIONS
from otter_losses import OTTERLoss, official
from otter_losses.distributed.shard import BatchShard
from otter_losses.ops.problem import Student

RANKS = 8
INITIAL_LOG_SCALE = 3.9
"""Of both temperatures in the released code, whose exponential is held in [1, MAX_SCALE]."""


@dataclass(frozen=True)
class OneProcess(BatchShard):
    """All ranks' pairs in this process: what is gathered is there already, and carries no gradient as over processes."""

    def all_gather(self, local: Tensor) -> Tensor:
        return local.detach()


def official_over_ranks(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    second: Tensor,
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    counts: tuple[int, ...],
) -> Tensor:
    """``OTTERLoss.official`` as ranks that bring so many pairs each train with it; with one rank its diagonal is right."""
    parts = official.losses(
        Student(x, y, y, scale),
        second,
        dist_image_features,
        dist_text_features,
        OneProcess(sizes=counts),
        epsilon=EPSILON,
        iterations=ITERATIONS,
        gamma_image=GAMMA,
        gamma_text=GAMMA,
    )
    contrastive, distill = (part.mean() for part in parts)
    return ALPHA * contrastive + (1 - ALPHA) * distill


def shares(pairs: int, ranks: int) -> tuple[int, ...]:
    """How many pairs each rank brings."""
    return tuple(len(part) for part in torch.empty(pairs).tensor_split(ranks))


class _Official(nn.Module):
    """An official arm's loss, from the model's features and two scales; `ranks` is None for the loss of one process."""

    def __init__(self, ranks: int | None, right: bool) -> None:
        super().__init__()
        self.ranks, self.right = ranks, right
        self.loss = OTTERLoss.official(alpha=ALPHA, epsilon=EPSILON, iterations=ITERATIONS, gamma_image=GAMMA, gamma_text=GAMMA)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor, second: Tensor, **teacher: Tensor) -> Tensor:
        teacher = {name: teacher[name] for name in ("dist_image_features", "dist_text_features")}
        if self.ranks is None:
            value: Tensor = self.loss(x, y, scale, distill_logit_scale=second, **teacher)
            return value
        counts = shares(len(x), 1 if self.right else self.ranks)
        return official_over_ranks(x, y, scale, second, counts=counts, **teacher)


class TwoTemperatures(TwoHeads):
    """The heads with the released code's second temperature, for the distillation."""

    def __init__(self, model: TwoHeads) -> None:
        nn.Module.__init__(self)
        self.image, self.text = model.image, model.text
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))
        self.log_second = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        return (*super().forward(images, texts), self.log_second.exp())

    @torch.no_grad()
    def clamp_scale(self) -> None:
        for scale in (self.log_scale, self.log_second):
            scale.clamp_(0.0, math.log(MAX_SCALE))


ARMS = {
    "paper": None,
    "official, 1 process": partial(_Official, None, True),
    f"official, {RANKS} ranks, right diagonal": partial(_Official, RANKS, True),
    f"official, {RANKS} ranks": partial(_Official, RANKS, False),
}


def given_back(v: Tensor, t: Tensor, ranks: int = RANKS) -> Tensor:
    """Share of each row's transported mass on its own pair in the released code, for the rows of all ranks but the first."""
    counts = shares(len(v), ranks)
    scores = GAMMA * (v @ v.T) + GAMMA * (t @ t.T) + v @ t.T
    return official.targets(scores, official.diagonal_penalty(GAMMA, GAMMA), counts, EPSILON, ITERATIONS).diagonal()[counts[0] :]
