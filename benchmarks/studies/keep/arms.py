"""What is trained, and on which of the pairs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.studies.registered.arms import OURS
from benchmarks.studies.training.losses import BASELINE

KEPT_ABOVE = 0.5
"""Of the trust: the command's own default."""


@dataclass(frozen=True)
class Arm:
    """`loss` is an arm of the registered run. With `same_steps` fewer pairs are trained on for more epochs."""

    loss: str
    keeps: Literal["all", "trusted", "right"] = "all"
    same_steps: bool = False


ARMS = {
    "InfoNCE": Arm(BASELINE),
    "InfoNCE on the kept": Arm(BASELINE, "trusted"),
    "the same, as many steps": Arm(BASELINE, "trusted", same_steps=True),
    "GCE on the kept": Arm("GCE", "trusted"),
    "InfoNCE on the right pairs": Arm(BASELINE, "right"),
    "trust x GCE": Arm("trust x GCE"),
    "RobustLoss": Arm(OURS),
}


def rows_of(arm: Arm, trust: Tensor, right: Tensor) -> Tensor:
    """(N,) trust, and which pairs are right -> the rows that are trained on."""
    kept = {"all": torch.ones_like(right), "trusted": trust >= KEPT_ABOVE, "right": right}[arm.keeps]
    return kept.nonzero().flatten()
