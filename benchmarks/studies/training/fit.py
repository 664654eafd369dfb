"""Training of heads on given pairs, the same for every loss and study.

Runs of the same seed share the heads they start from, the batches and the shuffled captions, whatever the loss, so that losses
can be compared seed by seed.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.studies.training.heads import TwoHeads
from otter_losses import EMATeacher

BATCH = 512
ORDER_SEED = 10_000
"""Added to a run's seed for the batches, so that their order has nothing to do with which captions are shuffled."""


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
    per_pair: Mapping[str, Tensor] | None = None,
) -> None:
    """Trains on ``images[pairs]`` with the captions ``texts[given]``, by a cosine schedule, the teacher following every step.

    `loss` is called with what the model returns, where there is a teacher with its features as open_clip names them, and with the
    batch's rows of what `per_pair` has of every pair.
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
            targets = {name: values[rows] for name, values in (per_pair or {}).items()}
            if teacher is not None:
                v, t, teacher_scale, *_ = teacher(*inputs)
                targets |= {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": teacher_scale}
            optimizer.zero_grad()
            value = loss(*model(*inputs), **targets)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            model.clamp_scale()
            if teacher is not None:
                teacher.update(model)
