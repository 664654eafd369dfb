"""OTTER: targets from entropic optimal transport."""

from typing import Any, Literal

from torch import Tensor

from otter_losses import checks
from otter_losses.functional import Parts, otter_loss
from otter_losses.losses.base import PairLoss


class OTTERLoss(PairLoss):
    r"""Optimal transport distillation (Wu et al., ICLR 2022, arXiv 2112.09445).

    The teacher's similarities, without the given pairs, are matched by entropic optimal transport; the match is the target
    beside the given pair:

    .. math::
        S_{ij} &= \gamma_v\,v_i \cdot v_j + \gamma_t\,t_i \cdot t_j + v_i \cdot t_j, \quad S_{ii} = -\infty \\
        M &= \arg\max_{M \in U} \langle M, S \rangle + \epsilon H(M), \quad \text{each row then scaled to sum 1} \\
        P &= \alpha I + (1 - \alpha) M \\
        L &= \tfrac12 \operatorname{CE}\big(P, \operatorname{softmax}_j(s\,x_i \cdot y_j)\big)
           + \tfrac12 \operatorname{CE}\big(Q, \operatorname{softmax}_j(s\,y_i \cdot x_j)\big)

    where U holds the plans with uniform marginals and Q comes from the problem on the transpose of S. Sinkhorn-Knopp solves
    both, rows first, for `iterations` rounds. ``alpha=1`` is InfoNCE. No gradient flows through the targets.

    Args:
        alpha: prior that a given pair is right, a number in [0, 1]. The call's ``alpha=`` overrides it, with a number or with one
            value a pair, shape (N,).
        epsilon: entropic regularisation (the paper's lambda), at least 1e-30; small is sharp. Up to 80 times smaller than the
            range of S the solver works in plain numbers, below that in logarithms at several times the cost.
        iterations: Sinkhorn-Knopp rounds, at least 1.
        gamma_image, gamma_text: weights of the similarities within a modality, at least 0.
        scope: over several ranks, "global" transports among the pairs of all; "local" within each rank's own, which saves
            gathering the teacher's features and all collectives of the sweeps, but finds no match on another rank. The softmaxes
            are over the pairs of all ranks in both.
        backend: "auto" takes the fused kernels on a GPU and plain torch elsewhere; "torch", "triton" and "cuda" insist, see
            docs/kernels.md.
        max_memory: bytes the N x N matrices may take (there are two; three with `distill_logit_scale`) before they are
            recomputed in row blocks; by default 2 GiB, on a GPU an eighth of its memory where that is more.
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: open_clip's; see `PairLoss`.

    Shape: see `PairLoss.forward`; beyond it the call takes ``alpha`` and ``distill_logit_scale``, a second scale (float, 0-D or
    [1]) for the student's logits in the transported part.

    Example:
        >>> import torch
        >>> from otter_losses import OTTERLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> v, t = torch.nn.functional.normalize(torch.randn(2, 8, 24), dim=-1)
        >>> loss = OTTERLoss()
        >>> loss(x, y, 14.3, dist_image_features=v, dist_text_features=t).backward()
        >>> parts = loss(x, y, 14.3, alpha=torch.linspace(0, 1, 8), output_dict=True)
        >>> sorted(parts)
        ['contrastive_loss', 'distill_loss']
    """

    def __init__(
        self,
        alpha: float = 0.5,
        epsilon: float = 0.15,
        iterations: int = 5,
        gamma_image: float = 1.0,
        gamma_text: float = 1.0,
        scope: Literal["global", "local"] = "global",
        **contract: Any,
    ) -> None:
        super().__init__(**contract)
        checks.check_number("alpha", alpha, low=0.0, high=1.0)
        checks.check_transport(epsilon, iterations, gamma_image, gamma_text)
        checks.check_scope(scope, official=False)
        self.alpha = alpha
        self.epsilon = epsilon
        self.iterations = iterations
        self.gamma_image = gamma_image
        self.gamma_text = gamma_text
        self.scope = scope
        self.is_official = False

    @classmethod
    def official(cls, **options: Any) -> "OTTERLoss":
        """The released code's arithmetic, to reproduce its numbers.

        The two directions are summed, not halved; the value is ``alpha CE + (1 - alpha) KL``; the diagonal is lowered by
        ``100 (gamma_image + gamma_text)`` rather than removed, so that it stays when both are 0; and the call's
        ``distill_logit_scale`` is its second learned temperature, that of the KL.

        Over several processes two more quirks are reproduced: transport removes the wrong entries on every rank but the first,
        so that most of the transported mass can go back to the given pair, and no gradient flows through what other ranks
        computed. Every rank then solves the whole N x N problem, in plain torch, as the released code does.

        Example:
            >>> import torch
            >>> from otter_losses import OTTERLoss
            >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
            >>> value = OTTERLoss.official(alpha=0.5)(x, y, logit_scale=49.4, distill_logit_scale=49.4)
        """
        loss = cls(**options)
        checks.check_scope(loss.scope, official=True)
        loss.is_official = True
        return loss

    def options(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "epsilon": self.epsilon,
            "iterations": self.iterations,
            "gamma_image": self.gamma_image,
            "gamma_text": self.gamma_text,
            "scope": self.scope,
            "official": self.is_official,
        }

    def compute(self, *args: Any, **kwargs: Any) -> Tensor | Parts:
        return otter_loss(*args, **kwargs)
