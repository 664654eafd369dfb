"""SigLIP: a sigmoid for every pair of the batch."""

from typing import Literal

from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import PairLoss
from otter_losses.losses.batch import PairBatch, Parts
from otter_losses.ops.sigmoid import makes_gradient_with_value, sigmoid, sigmoid_mean


def siglip_loss(
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
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """The pairwise sigmoid loss. See `otter_losses.SigLIPLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import siglip_loss
        >>> round(float(siglip_loss(torch.eye(2), torch.eye(2), 10.0, -10.0)), 4)
        0.6932
    """
    if logit_bias is not None:
        checks.check_scalar("logit_bias", logit_bias)
    batch = PairBatch.prepare(
        image_features,
        text_features,
        logit_scale,
        None,
        groups=groups,
        reduction=reduction,
        backend=backend,
        max_memory=max_memory,
        shard=shard,
    )
    bias = batch.scalar("logit_bias", 0.0 if logit_bias is None else logit_bias)
    ids = None if batch.groups is None else batch.groups.ids
    if reduction == "mean" and makes_gradient_with_value(batch.student, bias, batch.execution):
        return batch.result(output_dict, are_means=True, contrastive_loss=sigmoid_mean(batch.student, bias, batch.execution, ids))
    return batch.result(output_dict, contrastive_loss=sigmoid(batch.student, bias, batch.execution, ids))


class SigLIPLoss(PairLoss):
    r"""The pairwise sigmoid loss (Zhai et al., arXiv 2303.15343).

    .. math:: L = -\tfrac{1}{N} \sum_{ij} \log \sigma\big(\ell_{ij} (s\,x_i \cdot y_j + b)\big), \quad
              \ell_{ii} = 1,\ \ell_{ij} = -1

    The bias `b` is the call's ``logit_bias``; the paper starts at -10 with s = 10. The loss equals open_clip's SigLipLoss.

    Args:
        backend: "auto" uses the fused kernels on a GPU and plain torch elsewhere. "torch", "triton" and "cuda" insist on that
            backend; see docs/kernels.md.
        max_memory: bytes that the N x N matrix may take; beyond this, it is recomputed in row blocks. The default is 2 GiB, or
            on a GPU an eighth of its memory if that is more.
        reduction, rank, world_size, group, uneven, local_loss, gather_with_grad, cache_labels, use_horovod: see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import SigLIPLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> SigLIPLoss()(x, y, logit_scale=10.0, logit_bias=-10.0).backward()
    """

    function = staticmethod(siglip_loss)
