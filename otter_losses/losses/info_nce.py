"""InfoNCE, the plain CLIP loss."""

from typing import Literal

from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import Contract, PairLoss, Unpack
from otter_losses.losses.batch import PairBatch, Parts


def info_nce_loss(
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
    q: float = 0.0,
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """The plain CLIP loss. See `otter_losses.InfoNCELoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import info_nce_loss
        >>> round(float(info_nce_loss(torch.eye(4), torch.eye(4), 1.0)), 4)
        0.7437
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
    return batch.softmax(batch.hard, None, 1.0, output_dict)


class InfoNCELoss(PairLoss):
    r"""The symmetric cross entropy over in-batch negatives, with which CLIP is trained (Radford et al., arXiv 2103.00020).

    .. math:: L = \tfrac{1}{2N} \sum_i \big[ -\log\operatorname{softmax}_j(s\,x_i \cdot y_j)_i
              - \log\operatorname{softmax}_j(s\,y_i \cdot x_j)_i \big]

    The loss equals open_clip's ClipLoss in value and gradient, and forms one logit matrix instead of two.

    Args:
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
        >>> from otter_losses import InfoNCELoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> InfoNCELoss()(x, y, logit_scale=14.3).backward()
    """

    function = staticmethod(info_nce_loss)

    def __init__(self, q: float = 0.0, **contract: Unpack[Contract]) -> None:
        super().__init__(**contract)
        checks.check_q(q)
        self.q = q
