"""`RobustLoss` without its guard, which is `DistillationLoss` with q, with one part changed at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.studies.registered.arms import HIGH, LOW, Q
from benchmarks.studies.training.heads import INITIAL_SCALE
from otter_losses import DistillationLoss
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.losses.robust import pull_left

SEEN = ("teacher's most wanted", "one direction", "right: p^q", "shuffled: p^q", "share")
"""What is written down each epoch; README.md says what they are."""


@dataclass(eq=False)
class Changed(nn.Module):
    """The loss with a change, and what it has seen.

    Attributes:
        q: of the generalised cross entropy.
        low: weight of a given pair at trust 0.
        teacher_scale: the teacher's logit scale; None: its own.
        teacher: whether there is one.
        guard: whether the teacher's part is held to the share of its pull that is left to the given pairs.
        seen: rows of `SEEN`, one a step.
    """

    q: float = Q
    low: float = LOW
    teacher_scale: float | None = None
    teacher: bool = True
    guard: bool = False
    seen: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.loss = DistillationLoss(q=self.q)

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        logit_scale: Tensor,
        *,
        trust: Tensor,
        right: Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Tensor,
    ) -> Tensor:
        alpha = self.low + (HIGH - self.low) * trust
        if self.teacher_scale is not None:
            dist_logit_scale = torch.full_like(dist_logit_scale, self.teacher_scale)
        teacher = {
            "dist_image_features": dist_image_features,
            "dist_text_features": dist_text_features,
            "dist_logit_scale": dist_logit_scale,
        }
        parts = self.loss(images, texts, logit_scale, **teacher, alpha=alpha, output_dict=True)
        given, distilled = parts["contrastive_loss"], parts["distill_loss"]
        share = pull_left(given.detach(), alpha, self.q, len(images), WHOLE_BATCH)
        with torch.no_grad():
            wanted = (dist_image_features @ dist_text_features.T).argmax(1).bincount().max() / len(images)
            p_q = self.q * (logit_scale * images @ texts.T).log_softmax(1).diagonal()
            of = [p_q[chosen].exp().mean() for chosen in (right, ~right)]
            self.seen.append(torch.stack([wanted, images.mean(0).square().sum(), *of, share]))
        value: Tensor = given + (share if self.guard else float(self.teacher)) * distilled
        return value


UNGUARDED, GUARDED = "unguarded", "guarded"
ARMS: dict[str, Callable[[], Changed]] = {
    UNGUARDED: Changed,
    "no teacher": lambda: Changed(teacher=False),
    "q = 0": lambda: Changed(q=0.0),
    "alpha 0.5 for all": lambda: Changed(low=HIGH),
    "teacher's scale 14.3": lambda: Changed(teacher_scale=INITIAL_SCALE),
    GUARDED: lambda: Changed(guard=True),
}
