"""InfoNCE, the plain CLIP loss."""

from typing import Any

from torch import Tensor

from otter_losses.functional import Parts, info_nce_loss
from otter_losses.losses.base import PairLoss


class InfoNCELoss(PairLoss):
    r"""The symmetric cross entropy over in-batch negatives that CLIP is trained with (Radford et al., arXiv 2103.00020).

    .. math:: L = \tfrac{1}{2N} \sum_i \big[ -\log\operatorname{softmax}_j(s\,x_i \cdot y_j)_i
              - \log\operatorname{softmax}_j(s\,y_i \cdot x_j)_i \big]

    Equal to open_clip's ClipLoss in value and gradient; one logit matrix instead of two.

    Args:
        backend: "auto" takes the fused kernels on a GPU and plain torch elsewhere; "torch", "triton" and "cuda" insist, see
            docs/kernels.md.
        max_memory: bytes the N x N matrix may take before it is recomputed in row blocks; by default 2 GiB, on a GPU an
            eighth of its memory where that is more.
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: open_clip's; see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import InfoNCELoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> InfoNCELoss()(x, y, logit_scale=14.3).backward()
    """

    def compute(self, *args: Any, **kwargs: Any) -> Tensor | Parts:
        return info_nce_loss(*args, **kwargs)
