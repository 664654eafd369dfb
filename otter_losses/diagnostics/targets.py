"""What a loss's targets look like on a batch, in four numbers."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from otter_losses import checks, official
from otter_losses.functional import otter_targets
from otter_losses.losses.base import PairLoss, check_is_loss
from otter_losses.losses.distillation import DistillationLoss
from otter_losses.losses.label_smoothing import LabelSmoothingLoss
from otter_losses.losses.otter import OTTERLoss
from otter_losses.losses.robust import RobustLoss
from otter_losses.ops.groups import Groups
from otter_losses.ops.memory import computing_dtype, without_autocast
from otter_losses.ops.reference import similarity

Plans = tuple[Tensor, Tensor]
"""Soft targets of images and of texts, (N, N) each, rows sum to 1."""


@torch.no_grad()
def target_summary(
    loss: PairLoss,
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    **overrides: Any,
) -> dict[str, float]:
    """What a loss's targets look like on a batch. Call it as you call the loss, with the loss in front.

    Over several processes these are the targets of this rank's pairs among themselves. The summary writes out a few N x N
    matrices, so ask for it every hundred steps instead of at each step (`log_targets`).

    Args:
        loss: a loss of this package.
        image_features, text_features, logit_scale, ...: the arguments of the loss; see `PairLoss.forward`.

    Returns:
        The numbers of `plan_summary`. If the loss has no soft targets, each pair has one match, its own.

    Raises:
        TypeError: the loss is not from this package.
        ValueError, TypeError: as for the loss.

    Example:
        >>> import torch
        >>> from otter_losses import OTTERLoss
        >>> from otter_losses.diagnostics import target_summary
        >>> found = target_summary(OTTERLoss(alpha=0.5), torch.eye(4), torch.eye(4), 14.3)
        >>> {name: round(value, 2) for name, value in found.items()}
        {'alpha': 0.5, 'mass_off_pair': 0.5, 'effective_matches': 3.0, 'top_mass': 0.33}
    """
    check_is_loss(loss)
    known = tuple(signature(type(loss).function).parameters)
    checks.refuse_names([name for name in overrides if name not in known], known, "target_summary")
    v, t = image_features, text_features
    if dist_image_features is not None and dist_text_features is not None:
        v, t = dist_image_features, dist_text_features
    options, groups = {**loss.options(), **overrides}, overrides.get("groups")
    # What the loss would refuse is refused in its words.
    type(loss).function(
        image_features,
        text_features,
        logit_scale,
        logit_bias,
        dist_image_features,
        dist_text_features,
        dist_logit_scale,
        dist_logit_bias,
        **options,
    )
    dtype = computing_dtype(v)
    with without_autocast(v):
        scale = logit_scale if dist_logit_scale is None else dist_logit_scale
        plans = _plans(loss, options, v.detach().to(dtype), t.detach().to(dtype), scale, groups)
        return plan_summary(plans, _prior(loss, options), groups)


def plan_summary(plans: Plans | None, alpha: Tensor | float, groups: Tensor | None = None) -> dict[str, float]:
    """Summarise soft targets that are combined with the given pairs.

    Args:
        plans: soft targets of the images and of the texts, (N, N) each, whose rows sum to 1. None if there are none.
        alpha: weight of the given pairs, a number or (N,).
        groups: (N,) integers. Pairs with the same id share the mass of the given pairs.

    Returns:
        Means over the pairs and both directions. `alpha` is the weight of the given pairs. `mass_off_pair` is the mass of the
        whole targets, ``alpha I + (1 - alpha) M``, on pairs other than the pair and its group. `effective_matches` is the
        exponential of the entropy of a row of M, which says how many texts an image is matched with. `top_mass` is the mass of
        the best of them.

    Example:
        >>> import torch
        >>> from otter_losses.diagnostics import plan_summary
        >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> plan_summary((swap, swap), alpha=0.75)
        {'alpha': 0.75, 'mass_off_pair': 0.25, 'effective_matches': 1.0, 'top_mass': 1.0}
    """
    mean = float(torch.as_tensor(alpha, dtype=torch.float64).mean())
    if plans is None:
        return {"alpha": mean, "mass_off_pair": 0.0, "effective_matches": 1.0, "top_mass": 1.0}
    both = torch.stack(plans).double()
    own = _own_entries(both[0], groups)
    off = both.masked_fill(own, 0).sum(-1).mean(0)
    return {
        "alpha": mean,
        "mass_off_pair": float(((1 - torch.as_tensor(alpha).to(off)) * off).mean()),
        "effective_matches": float(torch.special.entr(both).sum(-1).exp().mean()),
        "top_mass": float(both.amax(-1).mean()),
    }


def _own_entries(like: Tensor, groups: Tensor | None) -> Tensor:
    """Which entries (N, N) are of a pair with itself, or with its group."""
    return torch.eye(len(like), dtype=torch.bool, device=like.device) if groups is None else groups[:, None] == groups


def _kept_apart(like: Tensor, groups: Tensor | None) -> Tensor:
    return _own_entries(like, None if groups is None else Groups.of(groups, torch.float32).kept_apart())


def _prior(loss: PairLoss, options: dict[str, Any]) -> Tensor | float:
    if isinstance(loss, LabelSmoothingLoss):
        return 1.0 - float(options["smoothing"])
    prior: Tensor | float = options.get("alpha", 1.0)
    return prior


def _plans(
    loss: PairLoss, options: dict[str, Any], v: Tensor, t: Tensor, scale: Tensor | float, groups: Tensor | None
) -> Plans | None:
    if isinstance(loss, OTTERLoss):
        transport = {name: options[name] for name in ("epsilon", "iterations", "gamma_image", "gamma_text")}
        if not options["official"]:
            return otter_targets(v, t, **transport, groups=groups)
        return official.both_targets(v, t, (len(v),), **transport)
    if isinstance(loss, (DistillationLoss, RobustLoss)):
        epsilon, gammas = options.get("epsilon"), (options.get("gamma_image", 0.0), options.get("gamma_text", 0.0))
        scores = similarity(v, t, *gammas) * (torch.as_tensor(scale).to(v).reshape(()) if epsilon is None else 1 / epsilon)
        if options.get("remove_diagonal") and len(v) > 1:
            scores = scores.masked_fill(_kept_apart(scores, groups), -torch.inf)
        return scores.softmax(1), scores.T.softmax(1)
    if isinstance(loss, LabelSmoothingLoss):
        everywhere = v.new_ones(len(v), len(v))
        if options["convention"] == "paper" and len(v) > 1:
            own = _own_entries(v, groups)
            everywhere = everywhere.masked_fill(own & ~own.all(1, keepdim=True), 0)
        plan = everywhere / everywhere.sum(1, keepdim=True)
        return plan, plan
    return None
