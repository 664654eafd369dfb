"""The nearest rows by an index of faiss: where the exact search is too dear."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from otter_losses.audit.features import BLOCK_ROWS
from otter_losses.audit.kept import Kept
from otter_losses.audit.projection import Told
from otter_losses.ops.memory import slices

PROBES = 64
"""Cells of the index that are looked into."""


@dataclass(frozen=True)
class IndexSearch:
    """Neighbours from an inverted file of ``4 sqrt(N)`` cells, of which the `PROBES` nearest are looked into.

    Attributes:
        k: how many.
        kept: where finished blocks are.
    """

    k: int
    kept: Kept

    def __call__(self, stage: str, projected: Tensor, told: Told) -> Tensor:
        """Row numbers (N, k), int32, the nearest first, none its own; -1 where fewer are found."""
        try:
            import faiss
        except ImportError as error:
            raise ImportError(
                "search is 'faiss', which cannot be imported; need faiss. Install it: pip install 'otter-losses[faiss]'."
            ) from error
        rows, width = projected.shape
        cells = max(int(4 * rows**0.5), 1) if rows >= 1024 else 1
        index = faiss.index_factory(width, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: 64 * cells]
        index.train(projected[order.sort().values.to(projected.device)].float().cpu().numpy())
        for block in slices(rows, BLOCK_ROWS):
            index.add(projected[block].float().cpu().numpy())
        index.nprobe = PROBES
        found = torch.empty(rows, self.k, dtype=torch.int32)
        for block in slices(rows, BLOCK_ROWS):

            def search(block: slice = block) -> Tensor:
                _, near = index.search(projected[block].float().cpu().numpy(), self.k + 1)
                others = near != np.arange(block.start, block.stop)[:, None]
                others[others.all(1), -1] = False
                return torch.from_numpy(near[others].reshape(-1, self.k)).int()

            found[block] = self.kept(f"{stage}-0-{block.start}", search)
            told(block.stop)
        return found.to(projected.device)
