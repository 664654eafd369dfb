"""Self-distillation: InfoNCE beside a teacher's row softmaxes."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.base import Contract, PairLoss, PerPairCheck, Unpack
from otter_losses.losses.batch import PairBatch, Parts
from otter_losses.ops.cross_entropy import cross_entropy
from otter_losses.ops.targets import SoftTargets, logit_range


def distillation_loss(
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
    epsilon: float | None = None,
    gamma_image: float = 0.0,
    gamma_text: float = 0.0,
    remove_diagonal: bool = False,
    q: float = 0.0,
    groups: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: str = "auto",
    max_memory: int | None = None,
    shard: BatchShard = WHOLE_BATCH,
) -> Tensor | Parts:
    """InfoNCE combined with soft labels from a teacher's row softmaxes. See `otter_losses.DistillationLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import distillation_loss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> sorted(distillation_loss(x, y, 14.3, output_dict=True))
        ['contrastive_loss', 'distill_loss']
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
    checks.check_alpha(alpha, batch.local_size, batch.student.image_features.device)
    checks.check_transport(1.0 if epsilon is None else epsilon, 1, gamma_image, gamma_text)
    believes_all = batch.believes_all(alpha)
    v, t = batch.teacher(dist_image_features, dist_text_features, WHOLE_BATCH if believes_all else shard)
    penalty = math.inf if remove_diagonal else 0.0
    if epsilon is None:
        scale = batch.student.logit_scale if dist_logit_scale is None else batch.scalar("dist_logit_scale", dist_logit_scale)
        inv_epsilon, bound = scale.detach(), math.inf
    else:
        inv_epsilon = batch.constant(1 / epsilon)
        bound = logit_range(epsilon, gamma_image, gamma_text, penalty, inv_epsilon.dtype)
    soft = SoftTargets(
        image_features=v,
        text_features=t,
        inv_epsilon=inv_epsilon,
        gamma_image=gamma_image,
        gamma_text=gamma_text,
        diagonal_penalty=penalty,
        logit_range=bound,
        groups=batch.kept_apart() if remove_diagonal else None,
    )
    if believes_all:
        given = batch.of_given(cross_entropy(batch.student, batch.hard, None, batch.execution).given)
        return batch.mixed(alpha, given, torch.zeros_like(given), output_dict)
    return batch.softmax(batch.hard, soft, alpha, output_dict)


class DistillationLoss(PairLoss):
    r"""InfoNCE combined with soft labels from a teacher's similarities (Cheng et al., arXiv 2104.08945).

    .. math:: P = \alpha I + (1 - \alpha) \operatorname{softmax}_j(S_{ij}), \qquad
              S_{ij} = \big(\gamma_v\,v_i \cdot v_j + \gamma_t\,t_i \cdot t_j + v_i \cdot t_j\big) / \epsilon

    For text to image, rows and columns are exchanged. By default S holds the teacher's own image-text logits: there are no
    within-modality terms, and the teacher's own logit scale replaces ``1 / epsilon``. Unlike in OTTER's targets, no column is
    held to its share, so a text that resembles everything draws mass from every image.

    Args:
        alpha: weight of the given pairs, a number in [0, 1]. The call can give one value per pair instead.
        epsilon: the softmax's temperature. None takes the reciprocal of the call's ``dist_logit_scale``. If that is absent, it
            takes the reciprocal of the student's scale, detached.
        gamma_image, gamma_text: weights of the similarities within each modality; the paper's value is 0.
        remove_diagonal: take the given pair out of the softmax. With ``gamma_image=1, gamma_text=1, epsilon=0.15`` this is
            OTTER without Sinkhorn.
        q: exponent of the generalised cross entropy ``(1 - p^q) / q`` of the given pairs (Zhang and Sabuncu, arXiv 1805.07836),
            in [0, 1]; 0 gives the cross entropy. Pairs that the model does not believe pull less; see docs/robust.md.
        backend: "auto" uses the fused kernels on a GPU and plain torch elsewhere. "torch", "triton" and "cuda" insist on that
            backend; see docs/kernels.md.
        max_memory: bytes that the N x N matrices may take; beyond this, they are recomputed in row blocks. The default is
            2 GiB, or on a GPU an eighth of its memory if that is more.
        reduction, rank, world_size, group, uneven, local_loss, gather_with_grad, cache_labels, use_horovod: see `PairLoss`.

    Shape: see `PairLoss.forward`.

    Example:
        >>> import torch
        >>> from otter_losses import DistillationLoss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1).requires_grad_()
        >>> v, t = torch.nn.functional.normalize(torch.randn(2, 8, 24), dim=-1)
        >>> loss = DistillationLoss(alpha=0.5)
        >>> loss(x, y, 14.3, dist_image_features=v, dist_text_features=t, dist_logit_scale=50.0).backward()
    """

    function = staticmethod(distillation_loss)
    per_pair: ClassVar[dict[str, PerPairCheck]] = {**PairLoss.per_pair, "alpha": checks.check_alpha}

    def __init__(
        self,
        alpha: float = 0.5,
        epsilon: float | None = None,
        gamma_image: float = 0.0,
        gamma_text: float = 0.0,
        remove_diagonal: bool = False,
        q: float = 0.0,
        **contract: Unpack[Contract],
    ) -> None:
        super().__init__(**contract)
        checks.check_q(q)
        checks.check_number("alpha", alpha, low=0.0, high=1.0)
        checks.check_transport(1.0 if epsilon is None else epsilon, 1, gamma_image, gamma_text)
        self.q = q
        self.alpha = alpha
        self.epsilon = epsilon
        self.gamma_image = gamma_image
        self.gamma_text = gamma_text
        self.remove_diagonal = remove_diagonal
