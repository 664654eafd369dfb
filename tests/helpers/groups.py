"""Groups of pairs, and every loss in groups from whole matrices."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops import reference
from tests.helpers.batches import Batch

KINDS = ("each alone", "some", "two halves", "most", "all")


def make_groups(kind: str, pairs: int, seed: int = 0) -> Tensor:
    """Names of the pairs' groups: any integers."""
    pair = torch.arange(pairs)
    if kind == "some":
        return torch.randint(max(pairs // 3, 1), (pairs,), generator=torch.Generator().manual_seed(seed)) * 10**12 - 7
    return {"each alone": pair, "two halves": pair % 2, "most": pair.clamp(max=3), "all": 0 * pair}[kind]


def generalised(entropy: Tensor, q: float) -> Tensor:
    """``(1 - p^q) / q`` of ``-log p``."""
    return (1 - torch.exp(-entropy) ** q) / q if q else entropy


def matches(v: Tensor, t: Tensor, same: Tensor, epsilon: float = 0.15) -> tuple[Tensor, Tensor]:
    """OTTER's, without those within a group that leaves as many pairs outside of it; of a larger one each pair's own alone."""
    own = torch.eye(len(v), dtype=torch.bool)
    removed = torch.where(2 * same.sum(1, keepdim=True) <= len(v), same, own)
    scores = reference.similarity(v, t).masked_fill(removed, -torch.inf)
    plans = reference.sinkhorn(scores, epsilon, 5), reference.sinkhorn(scores.T, epsilon, 5)
    return plans[0] / plans[0].sum(1, keepdim=True), plans[1] / plans[1].sum(1, keepdim=True)


def grouped_losses(name: str, batch: Batch, bias: Tensor, groups: Tensor, q: float) -> Tensor:
    """One loss a pair, (N,), of a loss with its defaults but for q."""
    same = groups[:, None] == groups
    z = batch.scale * batch.x @ batch.y.T
    if name == "siglip":
        return -F.logsigmoid((2 * same.to(z) - 1) * (z + bias)).sum(1)
    given = same.to(z) / same.sum(1, keepdim=True)
    if name == "label_smoothing":
        others = (~same).sum(1, keepdim=True)
        given = torch.where(others > 0, 0.9 * given + 0.1 * (~same).to(z) / others.clamp_min(1), given)
    contrastive = (_entropy(z, given, q) + _entropy(z.T, given, q)) / 2
    if name in ("info_nce", "label_smoothing"):
        return contrastive
    if name in ("distillation", "robust"):
        plans = reference.distillation_targets(batch.v, batch.t, float(batch.scale.detach()))
    else:
        plans = matches(batch.v, batch.t, same)
    distilled = (_entropy(z, plans[0]) + _entropy(z.T, plans[1])) / 2
    share = 1 - q * contrastive.detach().mean() if name == "robust" else 1
    return (contrastive + share * distilled) / 2


def _entropy(z: Tensor, targets: Tensor, q: float = 0.0) -> Tensor:
    return generalised(-(targets * z.log_softmax(1)).sum(1), q)
