"""Whether the temperature that a model was trained with is too sharp for its data."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.functional import info_nce_loss
from otter_losses.losses.batch import of_one_dtype
from otter_losses.ops.memory import slices, without_autocast

TOO_SHARP = 1.8
"""Ratio of scales above which a lower start always gained on our pairs; docs/temperature.md."""

LOWEST, HIGHEST = 1e-2, 1e4
"""Scales among which the best is looked for."""

TELLING = 1e-5
"""What a best scale gains over the lowest, in nats; less is rounding, of features that are all the same."""

STEPS = 40
"""Halvings of that range, on a scale of logarithms: to 1e-11 of its width."""


@dataclass(frozen=True)
class ScaleCheck:
    """A trained logit scale, compared with the scale that fits held-out pairs.

    Attributes:
        logit_scale: the trained scale.
        best_scale: the scale with the lowest InfoNCE loss on the held-out pairs, from 0.01 to 10,000. It is 0.01 where no scale
            tells the pairs apart, and 10,000 where all are told apart for sure.
        loss, best_loss: InfoNCE of the held-out pairs in batches, at the trained scale and at the best.
    """

    logit_scale: float
    best_scale: float
    loss: float
    best_loss: float

    @property
    def ratio(self) -> float:
        """The trained scale divided by the best scale."""
        return self.logit_scale / self.best_scale

    @property
    def is_too_sharp(self) -> bool:
        """Whether that ratio is above 1.8."""
        return self.ratio > TOO_SHARP


def scale_check(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    batch_size: int = 512,
    seed: int = 0,
) -> ScaleCheck:
    """Compare a trained logit scale with the one that is best on held-out pairs, and warn if it is too sharp for them.

    The best scale has the lowest InfoNCE loss over batches of the held-out pairs,

        s* = argmin_s  mean_i  1/2 [ -log softmax_j(s x_i.y_j)_i - log softmax_j(s y_i.x_j)_i ],

    This is a convex function of s, whatever loss the model was trained with. A model that has learned wrong or ambiguous pairs
    by heart is surer of its training pairs than held-out pairs justify, so its scale is above the best. Above a ratio of 1.8
    the check warns.

    Args:
        image_features, text_features: (N, D), L2-normalised, made by the trained model from pairs that were NOT trained on; a
            few hundred are enough. Wrong pairs among them lower the best scale.
        logit_scale: the trained scale, already exponentiated.
        batch_size: number of pairs that compete in a batch. Give the batch size of the training over all devices, or as many
            pairs as there are. The best scale depends on it. Pairs that do not fill a whole batch are left out.
        seed: seed of the batches.

    Returns:
        A `ScaleCheck`. A `UserWarning` comes with it where `is_too_sharp` is true.

    Raises:
        ValueError, TypeError: as for the losses; also for a scale that is not positive, or fewer than 2 pairs.

    Example:
        >>> import torch
        >>> from otter_losses.diagnostics import scale_check
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
        >>> found = scale_check(x, torch.nn.functional.normalize(x + y, dim=-1), logit_scale=10.0)
        >>> found.is_too_sharp
        False
    """
    checks.check_features("image_features", image_features, "text_features", text_features)
    checks.check_scalar("logit_scale", logit_scale)
    checks.check_count("batch_size", batch_size, 2)
    trained = float(logit_scale.detach()) if isinstance(logit_scale, Tensor) else float(logit_scale)
    checks.check_number("logit_scale", trained, low=0.0, above=True)
    if len(image_features) < 2:
        raise ValueError(f"image_features has {len(image_features)} row; need at least 2 held-out pairs, better a few hundred.")
    x, y = of_one_dtype(image_features.detach(), text_features.detach())
    batches = _batches(x, y, batch_size, seed)
    with without_autocast(x):
        best, best_loss = _best_scale(batches)
        found = ScaleCheck(trained, best, _loss(batches, trained), best_loss)
    if found.is_too_sharp:
        warnings.warn(_words(found), UserWarning, stacklevel=2)
    return found


def _batches(x: Tensor, y: Tensor, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Of one size, in random order; a rest of fewer pairs is left out."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    size = min(size, len(x))
    return [(x[rows], y[rows]) for rows in (order[each] for each in slices(len(x), size)) if len(rows) == size]


def _best_scale(batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """With its loss."""
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _slope(batches, math.exp(middle)) > 0:
            high = middle
        else:
            low = middle
    best = math.exp(high)
    best_loss, lowest_loss = _loss(batches, best), _loss(batches, LOWEST)
    return (best, best_loss) if lowest_loss - best_loss > TELLING else (LOWEST, lowest_loss)


def _slope(batches: list[tuple[Tensor, Tensor]], scale: float) -> float:
    """Of the loss, by the scale."""
    total = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        for x, y in batches:
            s = torch.tensor(scale, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=True)
            value = info_nce_loss(x, y, s)
            assert isinstance(value, Tensor)
            total += float(torch.autograd.grad(value, s)[0])
    return total


@torch.no_grad()
def _loss(batches: list[tuple[Tensor, Tensor]], scale: float) -> float:
    losses = [torch.as_tensor(info_nce_loss(x, y, scale)) for x, y in batches]
    return float(torch.stack(losses).mean())


def _words(found: ScaleCheck) -> str:
    if found.best_scale < 2 * LOWEST:
        return (
            "no logit scale tells the held-out pairs apart better than a guess: row i of image_features and of text_features "
            "must be one L2-normalised pair, by a trained model."
        )
    return (
        f"the trained logit scale is {found.logit_scale:.1f}, {found.ratio:.2f} times the {found.best_scale:.1f} that is best on "
        f"the held-out pairs: too sharp for these data (above {TOO_SHARP}). Start from a lower logit scale, or hold it there: "
        "above that ratio this gained in all our runs of InfoNCE, and more than OTTERLoss did. If pairs are wrong, RobustLoss "
        "with an audit's alpha gains further. See docs/temperature.md."
    )
