"""Features as they are given: arrays or tensors, in memory or mapped from a file, read in blocks."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otter_losses.checks import check_floating
from otter_losses.ops.memory import slices

Features: TypeAlias = "Tensor | NDArray[Any]"
"""(N, D) of a real floating type; a `numpy.memmap` is read block by block."""

BLOCK_ROWS = 4096
"""Rows that are read, and searched for, at once. Sums go by these blocks, so that they do not depend on the memory there is."""

MOST_NORM = 1000
"""Times the median row's norm, which a row may have: one row of another scale would decide what counts as large."""

NAMED_ROWS = 10
"""Rows that an error names at most."""


class Rows:
    """Features (N, D) that are read in blocks."""

    def __init__(self, name: str, features: Features, device: torch.device) -> None:
        if isinstance(features, np.ndarray):
            if features.dtype not in (np.float16, np.float32, np.float64):
                raise TypeError(
                    f"{name} has dtype {features.dtype}; need float64, float32 or float16. Convert: {name}.astype('float32')."
                )
        elif isinstance(features, Tensor):
            check_floating(name, features)
        else:
            raise TypeError(f"{name} is a {type(features).__name__}; need a torch.Tensor or a numpy array.")
        if features.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(features.shape)}; need (N, D), one row a pair.")
        if features.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(features.shape)}; need at least one feature.")
        self.name, self.features, self.device = name, features, device
        self.width = int(features.shape[1])

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def read(self, rows: slice) -> Tensor:
        """In float64, on the device."""
        block = self.features[rows]
        if isinstance(block, np.ndarray):
            block = torch.from_numpy(np.array(block))
        return block.detach().to(self.device, torch.float64)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in slices(len(self), BLOCK_ROWS):
            yield rows, self.read(rows)

    def refuse_rows(self, norms: Tensor) -> None:
        """An error where rows with these norms (N,) hold what is not finite, or numbers of another scale than the others'."""
        finite = norms.isfinite()
        usual = norms[finite & (norms > 0)]
        bound = MOST_NORM * usual.median() if len(usual) else norms.new_tensor(torch.inf)
        for refused, has, need in (
            (~finite, "NaN or infinity in", "finite features"),
            (finite & (norms > bound), f"a norm of more than {MOST_NORM:,} times the median's in", "features of one scale"),
        ):
            rows = refused.nonzero().flatten().tolist()
            if rows:
                named = ", ".join(map(str, rows[:NAMED_ROWS]))
                more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
                raise ValueError(
                    f"{self.name} has {has} {'row' if len(rows) == 1 else 'rows'} {named}{more}; need {need}. Encode those pairs "
                    "again, or leave them out of both modalities."
                )
