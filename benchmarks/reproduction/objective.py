"""The loss of a configuration, and a look at the targets it trains towards."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import otter_losses
from benchmarks.reproduction.config import ConfigError, LossConfig
from benchmarks.reproduction.place import Place
from otter_losses import OTTERLoss, official
from otter_losses.functional import otter_targets
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
    """What the targets from a teacher's features of a whole batch, (N, D) each, look like; image to text.

    Args:
        scale: the teacher's logit scale, which KD without an epsilon sharpens by.
        ranks: processes that share the batch; the released code's mistake depends on it.

    Returns:
        `given`: the mass of a target on its own pair, mean over the batch. `transported`: entropy, in nats, of the rest of the
        mass as the loss finds it, prior aside. `matches`: exp of that, how many texts an image is matched with. `top`: the mass
        of the best match.

    Example:
        >>> import torch
        >>> from benchmarks.reproduction.config import load
        >>> found = diagnose(load(["otter"]).loss, torch.eye(4), torch.eye(4), scale=50.0, ranks=1)
        >>> {name: round(value, 2) for name, value in found.items()}
        {'given': 0.5, 'transported': 1.1, 'matches': 3.0, 'top': 0.33}
    """
    alpha = float(config.options.get("alpha", 0.5))
    plan = _plan(config, v.float(), t.float(), scale, ranks)
    entropy = torch.special.entr(plan).sum(1)
    return {
        "given": alpha + (1 - alpha) * float(plan.diagonal().mean()),
        "transported": float(entropy.mean()),
        "matches": float(entropy.exp().mean()),
        "top": float(plan.amax(1).mean()),
    }


def _plan(config: LossConfig, v: Tensor, t: Tensor, scale: float, ranks: int) -> Tensor:
    options = {name: value for name, value in config.options.items() if name != "alpha"}
    if config.name == "OTTERLoss":
        return otter_targets(v, t, **{name: value for name, value in options.items() if name != "scope"})[0]
    gammas = [
        float(options.get(f"gamma_{name}", 0.0 if config.name == "DistillationLoss" else 1.0)) for name in ("image", "text")
    ]
    scores = gammas[0] * (v @ v.T) + gammas[1] * (t @ t.T) + v @ t.T
    if config.name == OFFICIAL:
        counts = tuple(len(rows) for rows in v.tensor_split(ranks))
        return official.targets(
            scores, official.diagonal_penalty(*gammas), counts, options.get("epsilon", 0.15), options.get("iterations", 5)
        )
    epsilon = options.get("epsilon")
    scores = scores * (scale if epsilon is None else 1 / epsilon)
    if options.get("remove_diagonal"):
        scores.fill_diagonal_(-torch.inf)
    return scores.softmax(1)
