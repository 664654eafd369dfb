"""One training run: two linear heads over frozen features, one of the losses, the paper's settings for it.

Runs of the same seed share the heads they start from, the batches and the shuffled captions, whatever the loss, so that losses
can be compared seed by seed. The learning rate was chosen on the validation concepts by ``benchmarks.demo.choose``; the losses'
settings are the paper's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from otter_losses import DistillationLoss, EMATeacher, InfoNCELoss, LabelSmoothingLoss, OTTERLoss

from .evaluate import hit_at_k
from .noise import shuffle_captions
from .problem import Problem

BATCH = 512
LEARNING_RATE = 1e-3
WIDTH = 384
INITIAL_SCALE = 1 / 0.07
MAX_SCALE = 100.0
EMA_DECAY = 0.999
ORDER_SEED = 10_000
"""Added to a run's seed for the batches, so that their order has nothing to do with which captions are shuffled."""


@dataclass(frozen=True)
class Method:
    """A loss of the table, and whether it learns from an EMA teacher."""

    make: Callable[[], nn.Module]
    teacher: bool


METHODS = {
    "InfoNCE": Method(InfoNCELoss, teacher=False),
    "label smoothing": Method(lambda: LabelSmoothingLoss(smoothing=0.1), teacher=False),
    "KD": Method(lambda: DistillationLoss(alpha=0.5), teacher=True),
    "OTTER": Method(lambda: OTTERLoss(alpha=0.5, epsilon=0.15, iterations=5, gamma_image=1.0, gamma_text=1.0), teacher=True),
    "OTTER without Sinkhorn": Method(
        lambda: DistillationLoss(alpha=0.5, gamma_image=1.0, gamma_text=1.0, epsilon=0.15, remove_diagonal=True),
        teacher=True,
    ),
}
BASELINE = "InfoNCE"


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


class TwoHeads(nn.Module):
    """A head for pictures, a linear one for captions that starts as the identity, and a learnable temperature."""

    def __init__(self, image: nn.Module, text_width: int) -> None:
        super().__init__()
        self.image = image
        self.text = nn.Linear(text_width, WIDTH)
        nn.init.eye_(self.text.weight)
        nn.init.zeros_(self.text.bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        return normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1), self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        self.log_scale.clamp_(max=math.log(MAX_SCALE))


def fit(
    model: TwoHeads,
    loss: Callable[..., Tensor],
    teacher: EMATeacher | None,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    texts: Tensor,
    pairs: Tensor,
    given: Tensor,
    epochs: int,
    seed: int,
) -> None:
    """Trains on ``images[pairs]`` with the captions ``texts[given]``, by a cosine schedule, the teacher following every step.

    `loss` is called with what the model returns and, where there is a teacher, its features as open_clip names them.
    """
    batch = min(BATCH, len(pairs))
    steps = epochs * (len(pairs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(ORDER_SEED + seed)
    for _ in range(epochs):
        shuffled = torch.randperm(len(pairs), generator=order)
        for start in range(0, len(pairs) - batch + 1, batch):  # the rest of an epoch is too few for a batch
            rows = shuffled[start : start + batch]
            inputs = images[pairs[rows]], texts[given[rows]]
            targets = {}
            if teacher is not None:
                v, t, teacher_scale, *_ = teacher(*inputs)
                targets = {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": teacher_scale}
            optimizer.zero_grad()
            value = loss(*model(*inputs), **targets)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            model.clamp_scale()
            if teacher is not None:
                teacher.update(model)


def train(problem: Problem, run: Run) -> Outcome:
    """Trains for all epochs and scores the last state: no checkpoint is chosen."""
    images, texts = map(torch.from_numpy, problem.features)
    pairs = torch.tensor(problem.split.training)
    given = pairs[shuffle_captions(len(pairs), run.noise, run.seed)]
    method = METHODS[run.method]

    torch.manual_seed(run.seed)
    model = TwoHeads(nn.Linear(images.shape[1], WIDTH), texts.shape[1])
    teacher = EMATeacher(model, decay=EMA_DECAY, warmup=True) if method.teacher else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate)
    fit(model, method.make(), teacher, optimizer, images, texts, pairs, given, run.epochs, run.seed)

    with torch.inference_mode():
        x, y, scale = model.eval()(images, torch.from_numpy(problem.names))
        labels = torch.tensor(problem.labels)
        validation, test = (hit_at_k(x[rows] @ y.T, labels[rows]) for rows in (problem.split.validation, problem.split.test))
        probe = None
        if run.probe and teacher is not None:
            rows = torch.tensor(run.probe)
            v, t, _ = teacher(images[pairs[rows]], texts[given[rows]])
            probe = v.numpy(), t.numpy()
    return Outcome(run, validation, test, scale.item(), probe)
