"""What the losses are compared with: the loss people run today, the released arithmetic, and a transport library."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
from otter_losses.functional import otter_targets
from otter_losses.ops import reference


class Batch:
    """Student features with gradient, a teacher's without, and a learned scale: N unit vectors of width D that form clusters."""

    def __init__(self, pairs: int, width: int, device: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(max(pairs // 16, 1), width, generator=generator)

        def features() -> Tensor:
            noise = torch.randn(pairs, width, generator=generator)
            return F.normalize(centres[torch.arange(pairs) % len(centres)] + noise, dim=-1).to(device)

        self.x, self.y = features().requires_grad_(), features().requires_grad_()
        self.v, self.t = features(), features()
        self.scale = torch.tensor(14.3, device=device, requires_grad=True)

    def clear(self) -> None:
        self.x.grad = self.y.grad = self.scale.grad = None


def eager_info_nce(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE as open_clip's ClipLoss computes it on one device: two logit matrices, two cross entropies."""
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scale * x @ y.T, labels) + F.cross_entropy(scale * y @ x.T, labels)) / 2


def eager_siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """SigLIP as open_clip's SigLipLoss computes it on one device."""
    labels = 2 * torch.eye(len(x), device=x.device) - 1
    return -F.logsigmoid(labels * (scale * x @ y.T)).sum() / len(x)


def released_otter(x: Tensor, y: Tensor, scale: Tensor, v: Tensor, t: Tensor) -> Tensor:
    contrastive, distill = reference.released_loss(x, y, scale, v, t)
    return contrastive + distill


def pot_targets(v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both targets by POT's `ot.sinkhorn`, five iterations of each problem on the torch backend."""
    import ot

    n = len(v)
    weights = torch.full((n,), 1 / n, dtype=v.dtype, device=v.device)
    scores = reference.similarity(v, t).fill_diagonal_(-math.inf)
    plans = (
        ot.sinkhorn(weights, weights, -cost, 0.15, numItermax=5, stopThr=0, warn=False, method="sinkhorn")
        for cost in (scores.T, scores)
    )
    # POT matches columns first and rows last; transposing both the problem and the plan gives rows first.
    image_to_text, text_to_image = (plan.T for plan in plans)
    return image_to_text / image_to_text.sum(1, keepdim=True), text_to_image / text_to_image.sum(1, keepdim=True)


def losses(batch: Batch) -> dict[str, Callable[[], object]]:
    """One training step's loss, forward and backward, for each contender."""
    otter, info_nce, smoothing, siglip = OTTERLoss(), InfoNCELoss(), LabelSmoothingLoss(), SigLIPLoss()
    x, y, scale, v, t = batch.x, batch.y, batch.scale, batch.v, batch.t
    values: dict[str, Callable[[], object]] = {
        "eager InfoNCE": lambda: eager_info_nce(x, y, scale),
        "InfoNCELoss": lambda: info_nce(x, y, scale),
        "LabelSmoothingLoss": lambda: smoothing(x, y, scale),
        "released OTTER": lambda: released_otter(x, y, scale, v, t),
        "OTTERLoss": lambda: otter(x, y, scale, dist_image_features=v, dist_text_features=t),
        "OTTERLoss, own teacher": lambda: otter(x, y, scale),
        "eager SigLIP": lambda: eager_siglip(x, y, scale),
        "SigLIPLoss": lambda: siglip(x, y, scale),
    }
    if x.is_cuda:
        fused_otter, fused_info_nce, fused_siglip = (loss(backend="triton") for loss in (OTTERLoss, InfoNCELoss, SigLIPLoss))
        values["OTTERLoss, triton"] = lambda: fused_otter(x, y, scale, dist_image_features=v, dist_text_features=t)
        values["InfoNCELoss, triton"] = lambda: fused_info_nce(x, y, scale)
        values["SigLIPLoss, triton"] = lambda: fused_siglip(x, y, scale)

    def step(value: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            batch.clear()
            loss = value()
            assert isinstance(loss, Tensor)
            return loss.backward()  # type: ignore[no-untyped-call]

        return run

    return {name: step(value) for name, value in values.items()}


def targets(batch: Batch, with_pot: bool) -> dict[str, Callable[[], object]]:
    """Both targets from features, N x N matrices written out, and the one matrix product that is the floor of it."""
    v, t = batch.v, batch.t
    found: dict[str, Callable[[], object]] = {
        "released targets": lambda: reference.released_targets(v, t),
        "otter_targets": lambda: otter_targets(v, t),
        "one N x N x 2D product": lambda: torch.cat((v, t), 1) @ torch.cat((v + t, t), 1).T,
    }
    if with_pot:
        found["POT targets"] = lambda: pot_targets(v, t)
    return found
