"""Every loss, to be built; variants of them that go another way; and what they may keep in memory."""

from collections.abc import Callable
from functools import partial

import pytest

from otter_losses import DistillationLoss, OTTERLoss
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES

Build = Callable[..., PairLoss]
"""Options of a loss -> the loss."""

MODULES: dict[str, Build] = {name: row.module for name, row in LOSSES.items()}
"""Every loss with its defaults."""

VARIANTS: dict[str, Build] = {
    **MODULES,
    "otter, logarithms": partial(OTTERLoss, epsilon=0.01),
    "otter, official": OTTERLoss.official,
    "otter, official, logarithms": partial(OTTERLoss.official, epsilon=0.01),
    "distillation, off the diagonal": partial(DistillationLoss, remove_diagonal=True, epsilon=0.15),
}
"""Those, and every other way through the arithmetic."""

DENSE, BLOCKS = 2 << 30, 0
memories = pytest.mark.parametrize("max_memory", [DENSE, BLOCKS], ids=["dense", "blocks"])
"""Matrices kept, or computed again block by block."""
