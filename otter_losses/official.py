"""The released code's loss over several processes, whose transport removes the wrong entries on every rank but the first."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.distributed.shard import BatchShard
from otter_losses.ops.problem import Student
from otter_losses.sinkhorn import sinkhorn_knopp


def diagonal_penalty(gamma_image: float, gamma_text: float) -> float:
    """What the released code lowers the given pairs' similarities by."""
    return 100 * (gamma_image + gamma_text)


def losses(
    student: Student,
    distill_logit_scale: Tensor,
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    shard: BatchShard,
    *,
    epsilon: float,
    iterations: int,
    gamma_image: float,
    gamma_text: float,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the given pairs, and divergence from the transported targets, of this rank's rows, (b,).

    Both directions are summed. As in the released code every rank solves the whole N x N problem, and no gradient flows through
    what was gathered from the ranks. Products are of what the student is multiplied as, in its computing dtype.
    """
    dtype = student.logit_scale.dtype
    with torch.autocast(student.image_features.device.type, enabled=False):
        operands = student.image_features, student.text_features
        x, y = (_of_value(each.to(dtype), own.to(dtype)) for each, own in zip(operands, student.differentiated(), strict=True))
        v, t = (shard.all_gather(each.detach().to(dtype)) for each in (dist_image_features, dist_text_features))
        images, texts = shard.all_gather(x), student.all_text_features.detach().to(dtype)
        rows = shard.local_slice(len(x))
        labels = torch.arange(rows.start, rows.stop, device=x.device)
        plans = both_targets(
            v, t, shard.sizes, epsilon=epsilon, iterations=iterations, gamma_image=gamma_image, gamma_text=gamma_text
        )
        given, matched = x.new_zeros(2, len(x))
        for features, others, plan in zip((x, y), (texts, images), plans, strict=True):
            transported = plan[rows]
            logits = features @ others.T
            given = given + F.cross_entropy(student.logit_scale * logits, labels, reduction="none")
            log_softmax = F.log_softmax(distill_logit_scale * logits, 1)
            matched = matched + F.kl_div(log_softmax, transported, reduction="none").sum(1)
        return given, matched


def _of_value(value: Tensor, differentiated: Tensor) -> Tensor:
    """The value, with the gradient of the other: between a number and its rounded self float32 adds and subtracts exactly."""
    return differentiated + (value - differentiated).detach()


def both_targets(
    v: Tensor, t: Tensor, sizes: tuple[int, ...], *, epsilon: float, iterations: int, gamma_image: float, gamma_text: float
) -> tuple[Tensor, Tensor]:
    """`targets` of images and of texts, (N, N) each, of a teacher's features (N, E)."""
    within = gamma_image * (v @ v.T) + gamma_text * (t @ t.T)
    penalty = diagonal_penalty(gamma_image, gamma_text)
    image, text = (targets(within + cross, penalty, sizes, epsilon, iterations) for cross in (v @ t.T, t @ v.T))
    return image, text


def targets(scores: Tensor, penalty: float, sizes: tuple[int, ...], epsilon: float, iterations: int) -> Tensor:
    """The transport of scores (N, N) in which each rank lowers what it takes for the diagonal of its rows: the first rank's."""
    n = len(scores)
    wrong = torch.cat([torch.eye(size, n, dtype=scores.dtype, device=scores.device) for size in sizes])
    plan = sinkhorn_knopp(scores - penalty * wrong, epsilon, iterations)
    assert isinstance(plan, Tensor)
    return F.normalize(plan, p=1, dim=1)
