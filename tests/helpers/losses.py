"""Every loss, to be built."""

from collections.abc import Callable

from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES

Build = Callable[..., PairLoss]
"""Options of a loss -> the loss."""

MODULES: dict[str, Build] = {name: row.module for name, row in LOSSES.items()}
"""Every loss with its defaults."""
