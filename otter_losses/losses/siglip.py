"""SigLIP: a sigmoid for every pair of the batch."""

from typing import Any

from torch import Tensor

from otter_losses.functional import Parts, siglip_loss
from otter_losses.losses.base import PairLoss


class SigLIPLoss(PairLoss):
    r"""The pairwise sigmoid loss (Zhai et al., arXiv 2303.15343).

    .. math:: L = -\tfrac{1}{N} \sum_{ij} \log \sigma\big(\ell_{ij} (s\,x_i \cdot y_j + b)\big), \quad
              \ell_{ii} = 1,\ \ell_{ij} = -1

    The bias `b` is the call's ``logit_bias`` (the paper starts at -10 with s = 10). Equal to open_clip's SigLipLoss.

    Args:
        backend: "auto" takes the fused kernels on a GPU and plain torch elsewhere; "torch", "triton" and "cuda" insist, see
            docs/kernels.md.
        max_memory: bytes the N x N matrix may take before it is recomputed in row blocks; by default 2 GiB, on a GPU an
            eighth of its memory where that is more.
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: open_clip's; see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import SigLIPLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> SigLIPLoss()(x, y, logit_scale=10.0, logit_bias=-10.0).backward()
    """

    def compute(self, *args: Any, **kwargs: Any) -> Tensor | Parts:
        return siglip_loss(*args, **kwargs)
