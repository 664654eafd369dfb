"""InfoNCE with smoothed targets."""

from typing import Literal

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import Contract, PairLoss, Unpack
from otter_losses.losses.batch import PairBatch, Parts
from otter_losses.ops.groups import Groups
from otter_losses.ops.targets import HardTargets


def label_smoothing_loss(
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
    smoothing: float = 0.1,
    convention: Literal["paper", "torch"] = "paper",
    q: float = 0.0,
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """InfoNCE with smoothed targets. See `otter_losses.LabelSmoothingLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import label_smoothing_loss
        >>> round(float(label_smoothing_loss(torch.eye(4), torch.eye(4), 1.0, smoothing=0.1)), 4)
        0.8437
    """
    batch = PairBatch.prepare(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        groups=groups,
        q=q,
        reduction=reduction,
        backend=backend,
        max_memory=max_memory,
        shard=shard,
    )
    checks.check_smoothing(smoothing, convention)
    return batch.softmax(smoothed(smoothing, convention, batch.size, batch.groups), None, 1.0, output_dict)


def smoothed(smoothing: float, convention: str, pairs: int, groups: Groups | None) -> HardTargets:
    """The targets of `LabelSmoothingLoss`. A single pair, or a single group, has no other to share with."""
    if groups is not None:
        if convention == "torch":
            everywhere = torch.full_like(groups.sizes, smoothing / pairs)
            return HardTargets((1 - smoothing) / groups.sizes, everywhere, groups.ids)
        others = pairs - groups.sizes
        given_away = smoothing * (others > 0).to(others)
        to_each = given_away / others.clamp_min(1)
        return HardTargets((1 - given_away) / groups.sizes - to_each, to_each, groups.ids)
    if convention == "torch":
        return HardTargets(on_pair=1 - smoothing, uniform=smoothing / pairs)
    is_alone = 1 // pairs  # no branch, which torch.export would take once for all sizes
    shared = smoothing * (1 - is_alone)
    share = shared / (pairs - 1 + is_alone)
    return HardTargets(on_pair=1 - shared - share, uniform=share)


class LabelSmoothingLoss(PairLoss):
    r"""InfoNCE with targets that spread a share of the mass evenly over all pairs: OTTER's simplest rival.

    .. math:: P_{ii} = 1 - e,\ P_{ij} = \tfrac{e}{N-1} \ (\text{paper}) \qquad
              P_{ij} = (1 - e)\,\delta_{ij} + \tfrac{e}{N} \ (\text{torch})

    The loss is the mean of the cross entropies of P in both directions. "paper" is the convention of the OTTER authors, "torch"
    that of ``torch.nn.CrossEntropyLoss(label_smoothing=e)``. The loss costs the same as InfoNCE.

    Args:
        smoothing: the share e, in [0, 1].
        convention: "paper" or "torch", see the equations.
        q: exponent of the generalised cross entropy ``(1 - p^q) / q`` of the given pairs (Zhang and Sabuncu, arXiv 1805.07836),
            in [0, 1]; 0 gives the cross entropy. Pairs that the model does not believe pull less; see docs/robust.md.
        backend: "auto" uses the fused kernels on a GPU and plain torch elsewhere. "torch", "triton" and "cuda" insist on that
            backend; see docs/kernels.md.
        max_memory: bytes that the N x N matrix may take; beyond this, it is recomputed in row blocks. The default is 2 GiB, or
            on a GPU an eighth of its memory if that is more.
        reduction, rank, world_size, group, uneven, local_loss, gather_with_grad, cache_labels, use_horovod: see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import LabelSmoothingLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> LabelSmoothingLoss(smoothing=0.1)(x, y, logit_scale=14.3).backward()
    """

    function = staticmethod(label_smoothing_loss)

    def __init__(
        self,
        smoothing: float = 0.1,
        convention: Literal["paper", "torch"] = "paper",
        q: float = 0.0,
        **contract: Unpack[Contract],
    ) -> None:
        super().__init__(**contract)
        checks.check_q(q)
        checks.check_smoothing(smoothing, convention)
        self.q = q
        self.smoothing = smoothing
        self.convention: Literal["paper", "torch"] = convention
