"""InfoNCE with smoothed targets."""

from typing import Any, Literal

from torch import Tensor

from otter_losses import checks
from otter_losses.functional import Parts, label_smoothing_loss
from otter_losses.losses.base import PairLoss


class LabelSmoothingLoss(PairLoss):
    r"""InfoNCE whose targets give a share of the mass to all pairs alike: OTTER's simplest rival.

    .. math:: P_{ii} = 1 - e,\ P_{ij} = \tfrac{e}{N-1} \ (\text{paper}) \qquad
              P_{ij} = (1 - e)\,\delta_{ij} + \tfrac{e}{N} \ (\text{torch})

    The cross entropy of P in both directions, their mean. "paper" is the OTTER authors' convention, "torch" that of
    ``torch.nn.CrossEntropyLoss(label_smoothing=e)``. Costs what InfoNCE costs.

    Args:
        smoothing: e in [0, 1].
        convention: "paper" or "torch".
        backend: "auto" takes the fused kernels on a GPU and plain torch elsewhere; "torch", "triton" and "cuda" insist, see
            docs/kernels.md.
        max_memory: bytes the N x N matrix may take before it is recomputed in row blocks; by default 2 GiB, on a GPU an
            eighth of its memory where that is more.
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: open_clip's; see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import LabelSmoothingLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> LabelSmoothingLoss(smoothing=0.1)(x, y, logit_scale=14.3).backward()
    """

    def __init__(self, smoothing: float = 0.1, convention: Literal["paper", "torch"] = "paper", **contract: Any) -> None:
        super().__init__(**contract)
        checks.check_smoothing(smoothing, convention)
        self.smoothing = smoothing
        self.convention: Literal["paper", "torch"] = convention

    def options(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing, "convention": self.convention}

    def compute(self, *args: Any, **kwargs: Any) -> Tensor | Parts:
        return label_smoothing_loss(*args, **kwargs)
