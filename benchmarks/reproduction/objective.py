"""The loss of a configuration, and a look at the targets it trains towards."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import otter_losses
from benchmarks.reproduction.config import ConfigError, LossConfig
from benchmarks.reproduction.place import Place
from otter_losses import OTTERLoss, official
from otter_losses.diagnostics import plan_summary, target_summary
from otter_losses.losses.base import PairLoss

OFFICIAL = "OTTERLoss.official"
NAMES = ("InfoNCELoss", "LabelSmoothingLoss", "DistillationLoss", "OTTERLoss", OFFICIAL)


def build(config: LossConfig, place: Place) -> Callable[..., Tensor]:
    """The loss of the whole batch, over all processes, with its directions summed or averaged as configured.

    Raises:
        ConfigError: no such loss, or options it does not take.

    Example:
        >>> import torch
        >>> from benchmarks.reproduction.config import LossConfig
        >>> x, alone = torch.eye(4), Place(0, 1, torch.device("cpu"))
        >>> mean, total = (build(LossConfig(directions=each), alone)(x, x, 1.0) for each in ("mean", "sum"))
        >>> float(total / mean)
        2.0
    """
    if config.name not in NAMES:
        raise ConfigError(f"loss.name is {config.name!r}; need one of {', '.join(NAMES)}.")
    make: Callable[..., PairLoss] = OTTERLoss.official if config.name == OFFICIAL else getattr(otter_losses, config.name)
    try:
        loss = make(**config.options, rank=place.rank, world_size=place.size)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss.options {config.options} do not suit {config.name}: {error}") from error
    summed = config.name == OFFICIAL  # by itself; the others return the mean
    factor = {"sum": 2.0, "mean": 1.0}[config.directions] / (2.0 if summed else 1.0)

    def value(*args: Any, **kwargs: Any) -> Tensor:
        found = loss(*args, **kwargs)
        assert isinstance(found, Tensor)
        return factor * found

    return value


def diagnose(config: LossConfig, v: Tensor, t: Tensor, scale: float, ranks: int) -> dict[str, float]:
    """What the targets from a teacher's features of a whole batch, (N, D) each, look like.

    Args:
        scale: the teacher's logit scale, which KD without an epsilon sharpens by.
        ranks: processes that share the batch; the released code's mistake depends on it.

    Returns:
        The numbers of `otter_losses.diagnostics.plan_summary`.

    Example:
        >>> import torch
        >>> from benchmarks.reproduction.config import load
        >>> found = diagnose(load(["otter"]).loss, torch.eye(4), torch.eye(4), scale=50.0, ranks=1)
        >>> {name: round(value, 2) for name, value in found.items()}
        {'alpha': 0.5, 'mass_off_pair': 0.5, 'effective_matches': 3.0, 'top_mass': 0.33}
    """
    v, t, options = v.float(), t.float(), dict(config.options)
    if config.name != OFFICIAL:
        return target_summary(getattr(otter_losses, config.name)(**options, world_size=1), v, t, scale, dist_logit_scale=scale)
    alpha, counts = options.pop("alpha", 0.5), tuple(len(rows) for rows in v.tensor_split(ranks))
    transport = {"epsilon": 0.15, "iterations": 5, "gamma_image": 1.0, "gamma_text": 1.0, **options}
    return plan_summary(official.both_targets(v, t, counts, **transport), alpha)
