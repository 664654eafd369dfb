"""OTTER: targets from entropic optimal transport."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses import official as official_code
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import Contract, PairLoss, PerPairCheck, Unpack
from otter_losses.losses.batch import PairBatch, Parts
from otter_losses.losses.signature import spell_out
from otter_losses.ops.cross_entropy import cross_entropy
from otter_losses.ops.targets import HardTargets, SoftTargets, logit_range


def otter_loss(
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
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
    distill_logit_scale: Tensor | float | None = None,
    scope: Literal["global", "local"] = "global",
    official: bool = False,
    q: float = 0.0,
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """Optimal transport distillation (OTTER). See `otter_losses.OTTERLoss` for the equation and the arguments.

    Example:
        >>> import torch
        >>> from otter_losses.functional import otter_loss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> otter_loss(x, y, 14.3, alpha=0.5).shape
        torch.Size([])
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
    student = batch.student
    checks.check_alpha(alpha, batch.local_size, student.image_features.device)
    checks.check_transport(epsilon, iterations, gamma_image, gamma_text)
    checks.check_scope(scope, official)
    checks.check_official(official, groups, q)
    second_scale = None
    if distill_logit_scale is not None:
        second_scale = batch.scalar("distill_logit_scale", distill_logit_scale)
    if official and shard.is_distributed:
        v, t = batch.teacher(dist_image_features, dist_text_features, WHOLE_BATCH)
        given, transported = official_code.losses(
            student,
            student.logit_scale if second_scale is None else second_scale,
            student.image_features if v is None else v,
            student.text_features if t is None else t,
            shard,
            epsilon=epsilon,
            iterations=iterations,
            gamma_image=gamma_image,
            gamma_text=gamma_text,
        )
        return batch.mixed(alpha, given, transported, output_dict)

    believes_all = batch.believes_all(alpha)
    within_rank = scope == "local" and shard.is_distributed
    v, t = batch.teacher(dist_image_features, dist_text_features, WHOLE_BATCH if believes_all or within_rank else shard)
    penalty = official_code.diagonal_penalty(gamma_image, gamma_text) if official else math.inf
    inv_epsilon = batch.constant(1 / epsilon)
    soft = SoftTargets(
        image_features=v,
        text_features=t,
        inv_epsilon=inv_epsilon,
        gamma_image=gamma_image,
        gamma_text=gamma_text,
        diagonal_penalty=penalty,
        logit_range=logit_range(epsilon, gamma_image, gamma_text, penalty, inv_epsilon.dtype),
        iterations=iterations,
        divergence=official,
        groups=batch.kept_apart(within_rank),
    )
    directions = 2.0 if official else 1.0  # the released code sums them
    if believes_all:
        given, transported = _given_only(batch, second_scale)
    elif within_rank:
        given, transported = _transported_within_rank(batch, second_scale, soft)
    elif second_scale is not None:
        given, transported = _transported_at(batch, second_scale, soft)
    else:
        return batch.softmax(batch.hard, soft, alpha, output_dict, directions)
    return batch.mixed(alpha, directions * given, directions * transported, output_dict)


# Each of these returns the losses of the given and of the transported targets, (b,), means of both directions. The student's
# logits have its own scale against both, or a second one against the transported targets.


def _given_only(batch: PairBatch, second_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    given = batch.of_given(cross_entropy(batch.student, batch.hard, None, batch.execution).given)
    nothing = torch.zeros_like(given)
    if second_scale is not None:
        nothing = nothing + 0 * second_scale  # a parameter that DDP expects a gradient of
    return given, nothing


def _transported_at(batch: PairBatch, second_scale: Tensor, soft: SoftTargets) -> tuple[Tensor, Tensor]:
    # Two matrices of the transported part share the memory with one of the given pairs at another scale.
    third, rest = batch.execution.divided(3)
    transported = cross_entropy(batch.student.at_scale(second_scale), HardTargets(), soft, rest).soft
    given = cross_entropy(batch.student, batch.hard, None, third).given
    return batch.of_given(given), transported.mean(0)


def _transported_within_rank(batch: PairBatch, second_scale: Tensor | None, soft: SoftTargets) -> tuple[Tensor, Tensor]:
    """Targets transported among the local pairs, softmaxes over the pairs of all ranks."""
    student = batch.student if second_scale is None else batch.student.at_scale(second_scale)
    execution, _ = batch.execution.divided(2 if second_scale is None else 3)
    own = given = cross_entropy(student, HardTargets(), None, execution).given
    if second_scale is not None or batch.groups is not None:
        given = cross_entropy(batch.student, batch.hard, None, execution).given
    transported = own.mean(0)
    if batch.local_size > 1:
        within = execution.within_rank(student.image_features)
        local = cross_entropy(student.within_rank(), HardTargets(), soft, within)
        transported = transported + (local.soft - local.given).mean(0)  # the softmaxes within the rank cancel
    return batch.of_given(given), transported


class OTTERLoss(PairLoss):
    r"""Optimal transport distillation (Wu et al., ICLR 2022, arXiv 2112.09445).

    Entropic optimal transport matches the teacher's similarities, with the given pairs left out. The target combines this match
    with the given pair:

    .. math::
        S_{ij} &= \gamma_v\,v_i \cdot v_j + \gamma_t\,t_i \cdot t_j + v_i \cdot t_j, \quad S_{ii} = -\infty \\
        M &= \arg\max_{M \in U} \langle M, S \rangle + \epsilon H(M), \quad \text{each row then scaled to sum 1} \\
        P &= \alpha I + (1 - \alpha) M \\
        L &= \tfrac12 \operatorname{CE}\big(P, \operatorname{softmax}_j(s\,x_i \cdot y_j)\big)
           + \tfrac12 \operatorname{CE}\big(Q, \operatorname{softmax}_j(s\,y_i \cdot x_j)\big)

    Here U is the set of plans with uniform marginals, and Q comes from the problem on the transpose of S. Sinkhorn-Knopp solves
    both problems, rows first, in `iterations` rounds. ``alpha=1`` is InfoNCE. No gradient flows through the targets.

    Args:
        alpha: prior that a given pair is right, a number in [0, 1]. The call's ``alpha=`` overrides it, with a number or with
            one value per pair, shape (N,).
        epsilon: entropic regularisation (the paper's lambda), at least 1e-30. A small value gives sharp targets. If it is at
            most 80 times smaller than the range of S, the solver works in plain numbers. If it is smaller still, the solver
            works in logarithms, which are as exact but cost several times as much.
        iterations: number of Sinkhorn-Knopp rounds, at least 1.
        gamma_image, gamma_text: weights of the similarities within each modality, at least 0.
        scope: how several ranks share the transport. "global" transports among the pairs of all ranks, "local" within each
            rank's own pairs. "local" saves gathering the teacher's features and all collectives of the sweeps, but finds no
            match on another rank. In both, the softmaxes are over the pairs of all ranks.
        q: exponent of the generalised cross entropy ``(1 - p^q) / q`` of the given pairs (Zhang and Sabuncu, arXiv 1805.07836),
            in [0, 1]; 0 gives the cross entropy. Pairs that the model does not believe pull less; see docs/robust.md.
        backend: "auto" uses the fused kernels on a GPU and plain torch elsewhere. "torch", "triton" and "cuda" insist on that
            backend; see docs/kernels.md.
        max_memory: bytes that the N x N matrices may take (there are two, or three with `distill_logit_scale`); beyond this,
            they are recomputed in row blocks. The default is 2 GiB, or on a GPU an eighth of its memory if that is more.
        reduction, rank, world_size, group, uneven, local_loss, gather_with_grad, cache_labels, use_horovod: see `PairLoss`.

    Shape: see `PairLoss.forward`. The call also takes ``alpha`` and ``distill_logit_scale``. The latter is a second scale
    (float, 0-D or [1]) for the student's logits in the transported part.

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

    function = staticmethod(otter_loss)
    per_pair: ClassVar[dict[str, PerPairCheck]] = {**PairLoss.per_pair, "alpha": checks.check_alpha}
    scales: ClassVar[tuple[str, ...]] = ("distill_logit_scale",)

    def __init__(
        self,
        alpha: float = 0.5,
        epsilon: float = 0.15,
        iterations: int = 5,
        gamma_image: float = 1.0,
        gamma_text: float = 1.0,
        scope: Literal["global", "local"] = "global",
        q: float = 0.0,
        **contract: Unpack[Contract],
    ) -> None:
        super().__init__(**contract)
        checks.check_q(q)
        checks.check_number("alpha", alpha, low=0.0, high=1.0)
        checks.check_transport(epsilon, iterations, gamma_image, gamma_text)
        checks.check_scope(scope, official=False)
        self.q = q
        self.alpha = alpha
        self.epsilon = epsilon
        self.iterations = iterations
        self.gamma_image = gamma_image
        self.gamma_text = gamma_text
        self.scope = scope
        self.is_official = False

    @classmethod
    def official(cls, **options: Any) -> "OTTERLoss":
        """Build the loss with the released code's arithmetic, to reproduce its numbers.

        The two directions are summed, not halved. The value is ``alpha CE + (1 - alpha) KL``. The diagonal is lowered by
        ``100 (gamma_image + gamma_text)`` instead of being removed, so it stays when both are 0. The call's
        ``distill_logit_scale`` is the code's second learned temperature, which is that of the KL.

        Over several processes the loss reproduces two more quirks. Transport removes the wrong entries on every rank but the
        first, so most of the transported mass can go back to the given pair. No gradient flows through what other ranks
        computed. Every rank then solves the whole N x N problem in plain torch, as the released code does.

        Example:
            >>> import torch
            >>> from otter_losses import OTTERLoss
            >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
            >>> value = OTTERLoss.official(alpha=0.5)(x, y, logit_scale=49.4, distill_logit_scale=49.4)
        """
        loss = cls(**options)
        checks.check_scope(loss.scope, official=True)
        checks.check_official(True, None, loss.q)
        loss.is_official = True
        return loss

    def options(self) -> dict[str, Any]:
        return {**super().options(), "official": self.is_official}


spell_out(OTTERLoss.official.__func__, OTTERLoss)  # type: ignore[attr-defined]
