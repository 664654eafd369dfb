"""The method, and the released code's arithmetic, written to be read.

Every function materialises what it speaks of, runs in whatever dtype it is given (float64 is the oracle of the tests) and
is differentiated by autograd. Nothing here is called by the losses; the tests and benchmarks compare them with it.

Notation: ``v, t`` teacher image and text features (N, D), L2-normalised; ``x, y`` the student's; ``s`` the logit scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(v: Tensor, t: Tensor, gamma_image: float = 1.0, gamma_text: float = 1.0) -> Tensor:
    """``S_ij = gamma_v v_i.v_j + gamma_t t_i.t_j + v_i.t_j``; the text problem's matrix is its transpose."""
    return gamma_image * v @ v.T + gamma_text * t @ t.T + v @ t.T


def sinkhorn(
    scores: Tensor,
    epsilon: float,
    iterations: int,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
) -> Tensor:
    """``iterations`` times: match the rows, then the columns, in the log domain. Scores (M, N) -> plan (M, N)."""
    m, n = scores.shape
    rows = scores.new_full((m,), 1 / m) if row_marginal is None else row_marginal
    columns = scores.new_full((n,), 1 / n) if column_marginal is None else column_marginal
    log_plan = scores / epsilon
    for _ in range(iterations):
        log_plan = _match(log_plan, rows, dim=1)
        log_plan = _match(log_plan, columns, dim=0)
    return log_plan.exp()


def _match(log_plan: Tensor, marginal: Tensor, dim: int) -> Tensor:
    log_sums = log_plan.logsumexp(dim, keepdim=True)
    log_sums = torch.where(log_sums == -torch.inf, 0.0, log_sums)
    return log_plan - log_sums + marginal.log().unsqueeze(dim)


def otter_targets(
    v: Tensor,
    t: Tensor,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The transported part of both targets, (N, N) each, every row a distribution over the OTHER pairs.

    One pair alone has no other: its target is itself.
    """
    if len(v) == 1:
        return v.new_ones(1, 1), v.new_ones(1, 1)
    scores = similarity(v, t, gamma_image, gamma_text)
    scores = scores.masked_fill(torch.eye(len(v), dtype=torch.bool, device=v.device), -torch.inf)
    image_to_text = sinkhorn(scores, epsilon, iterations)
    text_to_image = sinkhorn(scores.T, epsilon, iterations)
    return (
        image_to_text / image_to_text.sum(1, keepdim=True),
        text_to_image / text_to_image.sum(1, keepdim=True),
    )


def distillation_targets(v: Tensor, t: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Row softmaxes of the teacher's image-text similarities, for both directions."""
    return (scale * v @ t.T).softmax(1), (scale * t @ v.T).softmax(1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``-mean_i sum_j T_ij log softmax_j(logits_ij)``."""
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def soft_target_loss(x: Tensor, y: Tensor, s: Tensor | float, p: Tensor, q: Tensor) -> Tensor:
    """Mean over the two directions of the cross entropy of targets ``p`` (image to text) and ``q`` (text to image)."""
    return (soft_cross_entropy(s * x @ y.T, p) + soft_cross_entropy(s * y @ x.T, q)) / 2


def otter_loss(
    x: Tensor,
    y: Tensor,
    s: Tensor | float,
    v: Tensor,
    t: Tensor,
    alpha: Tensor | float = 0.5,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
) -> Tensor:
    """Targets ``alpha I + (1 - alpha) M``; alpha is a number or one value per pair."""
    prior = torch.as_tensor(alpha, dtype=x.dtype, device=x.device).expand(len(x))
    plans = otter_targets(v, t, epsilon, iterations, gamma_image, gamma_text)
    p, q = (prior.diag() + (1 - prior)[:, None] * plan for plan in plans)
    return soft_target_loss(x, y, s, p, q)


def released_sinkhorn(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The released solver: the plain domain, the plan rescaled in place twice a half step."""
    plan = torch.exp(-cost / epsilon)
    plan = plan / plan.sum(dim=(-2, -1), keepdim=True)
    m, n = plan.shape[-2:]
    for _ in range(iterations):
        plan /= plan.sum(dim=-1, keepdim=True)
        plan *= 1 / m
        plan /= plan.sum(dim=-2, keepdim=True)
        plan *= 1 / n
    return plan


@torch.no_grad()
def released_targets(
    v: Tensor,
    t: Tensor,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The released targets on one process: four similarity products, a -100 penalty on the diagonal, two solves."""
    cross, cross_text = v @ t.T, t @ v.T
    penalty = 100 * torch.eye(len(v), dtype=v.dtype, device=v.device)
    within_image = (v @ v.T - penalty) * gamma_image
    within_text = (t @ t.T - penalty) * gamma_text
    image_to_text = released_sinkhorn(-(within_image + within_text + cross), epsilon, iterations)
    text_to_image = released_sinkhorn(-(within_image + within_text + cross_text), epsilon, iterations)
    image_to_text /= image_to_text.sum(dim=1, keepdim=True)
    text_to_image /= text_to_image.sum(dim=1, keepdim=True)
    return image_to_text, text_to_image


def released_loss(
    x: Tensor,
    y: Tensor,
    s: Tensor | float,
    v: Tensor,
    t: Tensor,
    alpha: float = 0.5,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
    distill_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """The released loss on one process: ``alpha CE + (1 - alpha) KL``, the two directions SUMMED, weights applied.

    ``distill_scale`` is the second temperature the released model learns for the KL; by default ``s`` serves both.
    """
    image_logits, text_logits = x @ y.T, y @ x.T
    labels = torch.arange(len(x), device=x.device)
    contrastive = F.cross_entropy(image_logits * s, labels) + F.cross_entropy(text_logits * s, labels)
    p, q = released_targets(v, t, epsilon, iterations, gamma_image, gamma_text)
    second = s if distill_scale is None else distill_scale
    distill = F.kl_div((image_logits * second).log_softmax(1), p, reduction="batchmean")
    distill = distill + F.kl_div((text_logits * second).log_softmax(1), q, reduction="batchmean")
    return alpha * contrastive, (1 - alpha) * distill
