"""The recipe for pairs of which many are wrong."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import Contract, PairLoss, PerPairCheck, Unpack
from otter_losses.losses.batch import Parts
from otter_losses.losses.distillation import distillation_loss


def robust_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    alpha: Tensor | float = 0.5,
    q: float = 0.3,
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """Generalised cross entropy of the given pairs, combined with a teacher's soft labels. See `otter_losses.RobustLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import robust_loss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> sorted(robust_loss(x, y, 14.3, alpha=torch.linspace(0.05, 0.5, 8), output_dict=True))
        ['contrastive_loss', 'distill_loss']
    """
    parts = distillation_loss(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        dist_image_features,
        dist_text_features,
        dist_logit_scale,
        dist_logit_bias,
        output_dict=True,
        alpha=alpha,
        q=q,
        groups=groups,
        reduction=reduction,
        backend=backend,
        max_memory=max_memory,
        shard=shard,
    )
    assert isinstance(parts, dict)
    given = parts["contrastive_loss"]
    distilled = parts["distill_loss"] * pull_left(given.detach(), alpha, q, image_features.shape[0], shard)
    return {"contrastive_loss": given, "distill_loss": distilled} if output_dict else given + distilled


def pull_left(given: Tensor, alpha: Tensor | float, q: float, pairs: int, shard: BatchShard) -> Tensor:
    """The share of the cross entropy's pull that generalised cross entropy leaves, 0-D.

    It is the mean of ``p^q`` over the given pairs, weighted by alpha. It is computed from `given`, which holds the losses
    ``alpha (1 - p^q) / q`` of this rank's `pairs`, (b,), or their mean over the pairs of all ranks, 0-D.
    """
    mean = shard.mean(given) if given.dim() else given
    tiny = torch.finfo(given.dtype).tiny  # of pairs that nobody believes nothing is lost
    if not isinstance(alpha, Tensor):
        return torch.add(torch.ones_like(mean), mean, alpha=-q / max(alpha, tiny))
    weight = shard.mean(alpha.to(given).expand(pairs)) if alpha.dim() else alpha.to(given)
    return 1 - q * mean / weight.clamp_min(tiny)


class RobustLoss(PairLoss):
    r"""For data with many wrong pairs: each pair is believed as far as it is trusted, and the rest is learned from a teacher.

    .. math:: L = \tfrac{1}{2N} \sum_i \sum_{p \in \{p^{v \to t}, p^{t \to v}\}}
              \alpha_i \frac{1 - p_{ii}^q}{q} - c\,(1 - \alpha_i) \sum_j T_{ij} \log p_{ij}, \qquad
              c = \frac{\sum \alpha_i\, p_{ii}^q}{\sum \alpha_i}

    Here p are the student's softmaxes in both directions. T are the softmaxes of a teacher's image-text similarities at its own
    logit scale, including the given pair. The first term is the generalised cross entropy (Zhang and Sabuncu,
    arXiv 1805.07836). The second term is self-distillation (Cheng et al., arXiv 2104.08945). Its weight c is a constant for the
    gradient. It is the share of the cross entropy's pull that q leaves to the given pairs. So a teacher that averages the
    student never pulls harder than the given pairs do. At a sharp temperature a harder pull would confirm whatever the student
    started with.

    The loss is meant for ``alpha=report.alpha()[rows]`` of `otter_losses.audit.pair_trust`, and for an `EMATeacher` of the
    model. These alphas range from 0.05 for a pair that is surely wrong to 0.5 for a pair that is surely right. Without them,
    alpha is the same for all pairs.

    Args:
        alpha: weight of the given pairs, a number in [0, 1]. The call can give one value per pair instead.
        q: exponent of the generalised cross entropy, in [0, 1]; 0 gives the cross entropy. Pairs that the model does not
            believe pull less.
        backend: "auto" uses the fused kernels on a GPU and plain torch elsewhere. "torch", "triton" and "cuda" insist on that
            backend; see docs/kernels.md.
        max_memory: bytes that the N x N matrices may take; beyond this, they are recomputed in row blocks. The default is
            2 GiB, or on a GPU an eighth of its memory if that is more.
        reduction, rank, world_size, group, uneven, local_loss, gather_with_grad, cache_labels, use_horovod: see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import RobustLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> v, t = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> alpha = torch.tensor([0.5, 0.5, 0.05, 0.5, 0.4, 0.05, 0.5, 0.3])
        >>> teacher = {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": 14.3}
        >>> RobustLoss()(x, y, 14.3, **teacher, alpha=alpha).backward()
    """

    function = staticmethod(robust_loss)
    per_pair: ClassVar[dict[str, PerPairCheck]] = {**PairLoss.per_pair, "alpha": checks.check_alpha}

    def __init__(self, alpha: float = 0.5, q: float = 0.3, **contract: Unpack[Contract]) -> None:
        super().__init__(**contract)
        checks.check_number("alpha", alpha, low=0.0, high=1.0)
        checks.check_q(q)
        self.alpha = alpha
        self.q = q
