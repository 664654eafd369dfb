"""What the adapters ask of a loss."""

from typing import Any

from otter_losses.losses.base import check_is_loss

PER_PAIR = ("alpha", "groups")
"""What a batch may hold for the loss: one value a pair."""


def check_loss(loss: Any) -> None:
    """That it is one of ours, and gives the one number that a training loop takes the gradient of."""
    check_is_loss(loss)
    if loss.reduction != "mean":
        raise ValueError(
            f"reduction is {loss.reduction!r}, one loss a pair; need 'mean', the one number to train on. Leave reduction out."
        )
