"""The losses that are compared, at the paper's settings, and the EMA teacher that some learn from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from otter_losses import DistillationLoss, EMATeacher, InfoNCELoss, LabelSmoothingLoss, OTTERLoss

ALPHA, EPSILON, ITERATIONS, GAMMA = 0.5, 0.15, 5, 1.0
"""OTTER's settings in the paper; GAMMA is that of images and of texts."""
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Method:
    """A loss, and whether it learns from an EMA teacher."""

    make: Callable[[], nn.Module]
    teacher: bool


METHODS = {
    "InfoNCE": Method(InfoNCELoss, teacher=False),
    "label smoothing": Method(lambda: LabelSmoothingLoss(smoothing=0.1), teacher=False),
    "KD": Method(lambda: DistillationLoss(alpha=ALPHA), teacher=True),
    "OTTER": Method(
        lambda: OTTERLoss(alpha=ALPHA, epsilon=EPSILON, iterations=ITERATIONS, gamma_image=GAMMA, gamma_text=GAMMA), teacher=True
    ),
    "OTTER without Sinkhorn": Method(
        lambda: DistillationLoss(alpha=ALPHA, gamma_image=GAMMA, gamma_text=GAMMA, epsilon=EPSILON, remove_diagonal=True),
        teacher=True,
    ),
}
OURS, BASELINE, WITHOUT = "OTTER", "InfoNCE", "OTTER without Sinkhorn"


def teacher_of(model: nn.Module) -> EMATeacher:
    """A teacher that starts as the model."""
    return EMATeacher(model, decay=EMA_DECAY, warmup=True)
