"""Both transport problems of a batch of pairs, solved together on one matrix.

With the teacher's logits ``L`` (see `similarity`), image to text is the problem on ``L``, rows matched first; text to image is
the problem on ``L^T``. With ``K = exp(L)`` both are read off one sweep over the rows: ``u = 1/(K v)`` and the sums ``u K`` for
the one, ``u' = 1/(K v')`` and ``u' K`` for the other. One opening sweep (``K^T 1``, the text problem's first half step) and one
sweep an iteration solve both, the last row normalisation of the text problem included; the image problem's is one more product
with each row block as it is used.

    M_ij = u_i K_ij v_j     (image to text, rows sum to 1)
    M'_ij = u'_i K_ij v'_j   (text to image, transposed: columns sum to 1)

With no iteration this is the row softmax of ``L`` and of ``L^T``: plain distillation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, reads_freely, safe_range
from otter_losses.ops.similarity import Similarity, row_chunks
from otter_losses.ops.world import ALONE, World


@dataclass(frozen=True)
class Kernel:
    """``exp(L - shift)`` or, in the logarithmic domain, ``L``: stored whole, or recomputed block by block."""

    similarity: Similarity
    domain: Domain
    shift: Tensor
    stored: Tensor | None
    world: World = ALONE

    @classmethod
    def build(
        cls, similarity: Similarity, spread: float | None, store: bool, cross: Tensor | None = None, world: World = ALONE
    ) -> "Kernel":
        """Choose the domain, and store the matrix where asked; `solve` opens it.

        `spread` is an upper bound on ``max L - min L`` for unit features, a diagonal that vanishes aside, or None. On the CPU,
        where a look costs nothing, the features and, if need be, the stored matrix decide instead.
        """
        shift = similarity.bound()
        limit = safe_range(shift.dtype)
        logits = similarity.matrix(cross) if store else None
        if reads_freely(shift):
            penalty = similarity.diagonal_penalty * abs(float(similarity.sharpness)) if similarity.diagonal_penalty else 0.0
            spread = 2 * float(shift) + (0.0 if diagonal_vanishes(penalty, shift.dtype) else penalty)
            if world:
                spread = float(world.highest(shift.new_full((), spread)))  # one decision, whatever a rank stores or rounds
            elif logits is not None and not spread <= limit:
                low, shift = _measure(logits)
                spread = float(shift - low)
        domain: Domain = SCALING if spread is not None and spread <= limit else LOGARITHMIC
        return cls(similarity, domain, shift, logits, world)

    def _enter(self, logits: Tensor) -> Tensor:
        return logits.sub_(self.shift).exp_() if self.domain is SCALING else logits

    def opening(self) -> Iterator[tuple[slice, Tensor]]:
        """The first sweep, which a kernel that was just built needs: it brings the stored logits into the domain."""
        for rows in self.chunks():
            yield rows, self.block(rows) if self.stored is None else self._enter(self.stored[rows])

    def chunks(self) -> list[slice]:
        own = self.similarity.own
        return row_chunks(own.stop - own.start, len(self.similarity.v), self.shift.device)

    def block(self, rows: slice) -> Tensor:
        """The rows asked for. Do not write to it: it may be the stored matrix itself."""
        return self._enter(self.similarity.rows(rows)) if self.stored is None else self.stored[rows]

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in self.chunks():
            yield rows, self.block(rows)


def diagonal_vanishes(penalty: float, dtype: torch.dtype) -> bool:
    """Whether a diagonal lowered by that much carries no mass where the other entries span no more than `safe_range`.

    The scalings make up for twice that span at most.
    """
    return penalty > 4 * safe_range(dtype)


def _measure(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest entry, without a diagonal so low that it carries no mass."""
    diagonal = logits.diagonal().clone()
    logits.diagonal().fill_(float(logits[0, -1]))
    low, high = torch.aminmax(logits)
    logits.diagonal().copy_(diagonal)
    if float(low - diagonal.amax()) > 2 * safe_range(logits.dtype):
        return low, high
    return torch.minimum(low, diagonal.amin()), torch.maximum(high, diagonal.amax())


def solve(kernel: Kernel, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Open the kernel and solve both problems on it.

    Returns the scalings ``v`` of the image problem's columns, ``u'`` of the text problem's own rows and ``v'`` of its columns.
    """
    domain, world = kernel.domain, kernel.world
    add = world.add if domain is SCALING else world.add_logarithms
    one = domain.enter(torch.ones_like(kernel.similarity.v[:, 0]))
    total: Tensor | None = None
    for rows, block in kernel.opening():
        sums = domain.column_sums(block, one[rows])
        total = sums if total is None else domain.merge(total, sums)
    assert total is not None
    own = kernel.similarity.own
    image_columns, text_columns, text_rows = one, domain.match(one, add(total)), one[own]
    for _ in range(iterations):
        image_total = text_total = None
        parts = []
        for rows, block in kernel.sweep():
            image_rows = domain.match(one[rows], domain.row_sums(block, image_columns))
            parts.append(domain.match(one[rows], domain.row_sums(block, text_columns)))
            image_sums = domain.column_sums(block, image_rows)
            text_sums = domain.column_sums(block, parts[-1])
            image_total = image_sums if image_total is None else domain.merge(image_total, image_sums)
            text_total = text_sums if text_total is None else domain.merge(text_total, text_sums)
        assert image_total is not None
        assert text_total is not None
        text_rows = torch.cat(parts)
        totals = add(torch.stack((image_total, text_total)))
        image_columns, text_columns = domain.match(one, totals[0]), domain.match(one, totals[1])
    return image_columns, text_rows, text_columns
