"""The losses, and the controls, each with what it is told about the pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.studies.registered.conditions import Condition
from benchmarks.studies.table.run import Run
from benchmarks.studies.training.heads import INITIAL_SCALE
from benchmarks.studies.training.losses import BASELINE, METHODS
from otter_losses import DistillationLoss, InfoNCELoss, RobustLoss

Q = 0.3
LOW, HIGH = 0.05, 0.5
"""Weights of the given pair at trust 0 and 1."""
WEIGHT_DECAY = 0.01
"""AdamW's own default."""

Trust = Literal["estimated", "permuted", "true"]


class TrustTimesGCE(nn.Module):
    """Generalised cross entropy of the given pairs, each weighed by its trust; no teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = InfoNCELoss(q=Q, reduction="none")

    def forward(self, images: Tensor, texts: Tensor, logit_scale: Tensor, *, trust: Tensor) -> Tensor:
        value: Tensor = (trust * self.loss(images, texts, logit_scale)).mean()
        return value


class ByTrust(nn.Module):
    """A loss with alphas by trust."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *features: Tensor, trust: Tensor, **teacher: Tensor) -> Tensor:
        value: Tensor = self.loss(*features, alpha=LOW + (HIGH - LOW) * trust, **teacher)
        return value


def robust() -> ByTrust:
    return ByTrust(RobustLoss(q=Q))


@dataclass(frozen=True)
class Arm:
    make: Callable[[], nn.Module]
    teacher: bool = False
    trust: Trust | None = None
    """What the loss is given: `permuted` is the estimated trust, dealt to the pairs at random; `true` is 0 for a pair that was
    shuffled, 1 for the others."""
    start_scale: float | None = None
    """By default the condition's."""
    weight_decay: float = WEIGHT_DECAY


OURS = "RobustLoss"
MAIN = {
    **{name: Arm(method.make, method.teacher) for name, method in METHODS.items()},
    "GCE": Arm(lambda: InfoNCELoss(q=Q)),
    "trust x GCE": Arm(TrustTimesGCE, trust="estimated"),
    OURS: Arm(robust, teacher=True, trust="estimated"),
}
CONTROLS = {
    "InfoNCE, scale 7": Arm(MAIN[BASELINE].make, start_scale=7.0),
    "InfoNCE, scale 10": Arm(MAIN[BASELINE].make, start_scale=10.0),
    "InfoNCE, weight decay 1": Arm(MAIN[BASELINE].make, weight_decay=1.0),
    "InfoNCE, weight decay 3": Arm(MAIN[BASELINE].make, weight_decay=3.0),
    "RobustLoss, trust permuted": Arm(robust, teacher=True, trust="permuted"),
    "RobustLoss, true labels": Arm(robust, teacher=True, trust="true"),
    "RobustLoss, unguarded": Arm(lambda: ByTrust(DistillationLoss(q=Q)), teacher=True, trust="estimated"),
}
ARMS = {**MAIN, **CONTROLS}


def runs_of(condition: Condition, seed: int) -> list[Run]:
    """Of every arm; an arm with a start scale of its own would repeat itself where conditions differ in the start scale only."""
    return [
        Run(condition.name, name, seed, condition.epochs)
        for name, arm in ARMS.items()
        if arm.start_scale is None or condition.start_scale == INITIAL_SCALE
    ]


def trust_given(kind: Trust, estimated: Tensor, given: Tensor, seed: int) -> Tensor:
    """(N,) for the pairs; `given` says whose caption each of them has."""
    if kind == "true":
        return (given == torch.arange(len(given))).float()
    if kind == "permuted":
        return estimated[torch.randperm(len(estimated), generator=torch.Generator().manual_seed(seed))]
    return estimated
