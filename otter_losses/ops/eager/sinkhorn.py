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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, reads_freely, safe_range
from otter_losses.ops.memory import row_blocks
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.targets import diagonal_vanishes


@dataclass(frozen=True, eq=False)
class GibbsKernel:
    """Local rows of ``K = exp(L - shift)`` or, in the logarithmic domain, of ``L``: stored whole, or recomputed block by block.

    Attributes:
        similarity: what ``L`` is computed from.
        domain: numbers, or their logarithms.
        shift: 0-D.
        stored: (b, N), or None.
    """

    similarity: Similarity
    domain: Domain
    shift: Tensor
    stored: Tensor | None

    @classmethod
    def build(
        cls, similarity: Similarity, logit_range: float | None, store: bool, reduce: Reduction, cross: Tensor | None = None
    ) -> "GibbsKernel":
        """Choose the domain, and store the matrix where asked; `solve` opens it.

        `logit_range` as in `SoftTargets`. On the CPU, where a look costs nothing, the features and, if need be, the stored matrix
        decide instead. `cross`: ``v t^T`` where the caller has it.
        """
        shift = similarity.bound()
        limit = safe_range(shift.dtype)
        logits = similarity.matrix(cross) if store else None
        if reads_freely(shift):
            penalty = similarity.diagonal_penalty
            lowered = penalty * abs(float(similarity.inv_epsilon)) if penalty else 0.0
            logit_range = 2 * float(shift) + (0.0 if diagonal_vanishes(lowered, shift.dtype) else lowered)
            if reduce.is_distributed:
                # One decision, whatever a rank stores or rounds.
                logit_range = float(reduce.all_reduce_max(shift.new_full((), logit_range)))
            elif logits is not None and not logit_range <= limit:
                low, shift = _extremes(logits)
                logit_range = float(shift - low)
        domain: Domain = SCALING if logit_range is not None and logit_range <= limit else LOGARITHMIC
        return cls(similarity, domain, shift, logits)

    def _enter(self, logits: Tensor) -> Tensor:
        return logits.sub_(self.shift).exp_() if self.domain is SCALING else logits

    def row_blocks(self) -> list[slice]:
        return row_blocks(*self.similarity.shape, self.shift.device)

    def block(self, rows: slice) -> Tensor:
        """The local rows asked for. Do not write to it: it may be the stored matrix itself."""
        return self._enter(self.similarity.block(rows)) if self.stored is None else self.stored[rows]

    def opening(self) -> Iterator[tuple[slice, Tensor]]:
        """The first sweep, which a kernel that was just built needs: it brings the stored logits into the domain."""
        for rows in self.row_blocks():
            yield rows, self.block(rows) if self.stored is None else self._enter(self.stored[rows])

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in self.row_blocks():
            yield rows, self.block(rows)


def _extremes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest entry, without a diagonal so low that it carries no mass."""
    diagonal = logits.diagonal().clone()
    logits.diagonal().fill_(float(logits[0, -1]))
    low, high = torch.aminmax(logits)
    logits.diagonal().copy_(diagonal)
    if float(low - diagonal.amax()) > 2 * safe_range(logits.dtype):
        return low, high
    return torch.minimum(low, diagonal.amin()), torch.maximum(high, diagonal.amax())


class Scalings(NamedTuple):
    """Of both problems, in the kernel's domain: the image problem's columns, the text problem's local rows and its columns.

    The image problem's rows are one more product with each block, as it is used: `row_scalings`.
    """

    image_columns: Tensor
    text_rows: Tensor
    text_columns: Tensor


def solve(kernel: GibbsKernel, iterations: int, reduce: Reduction) -> Scalings:
    """Open the kernel and solve both problems on it."""
    domain = kernel.domain
    all_reduce_ = reduce.all_reduce_sum_ if domain is SCALING else reduce.all_reduce_logsumexp_
    b, n = kernel.similarity.shape
    one = domain.enter(kernel.shift.new_ones(n))
    total: Tensor | None = None
    for rows, block in kernel.opening():
        sums = domain.column_sums(block, one[rows])
        total = sums if total is None else domain.merge(total, sums)
    assert total is not None
    scalings = Scalings(one, one[:b], domain.match(one, all_reduce_(total)))
    for _ in range(iterations):
        scalings = _round(kernel, scalings, one, all_reduce_)
    return scalings


def _round(kernel: GibbsKernel, before: Scalings, one: Tensor, all_reduce_: Callable[[Tensor], Tensor]) -> Scalings:
    """Match the rows of both problems, and in the same sweep the columns."""
    domain = kernel.domain
    image_total = text_total = None
    text_rows = []
    for rows, block in kernel.sweep():
        image_rows = domain.match(one[rows], domain.row_sums(block, before.image_columns))
        text_rows.append(domain.match(one[rows], domain.row_sums(block, before.text_columns)))
        image_sums = domain.column_sums(block, image_rows)
        text_sums = domain.column_sums(block, text_rows[-1])
        image_total = image_sums if image_total is None else domain.merge(image_total, image_sums)
        text_total = text_sums if text_total is None else domain.merge(text_total, text_sums)
    assert image_total is not None
    assert text_total is not None
    totals = all_reduce_(torch.stack((image_total, text_total)))
    return Scalings(domain.match(one, totals[0]), torch.cat(text_rows), domain.match(one, totals[1]))


def last_row_scalings(kernel: GibbsKernel, block: Tensor, columns: Tensor) -> Tensor:
    """The image problem's last row normalisation, of a block."""
    sums = kernel.domain.row_sums(block, columns)
    return kernel.domain.match(kernel.domain.enter(torch.ones_like(sums)), sums)


def plans(similarity: Similarity, logit_range: float | None, iterations: int, reduce: Reduction) -> tuple[Tensor, Tensor]:
    """``M`` and ``M'``, (N, N) each, written out."""
    kernel = GibbsKernel.build(similarity, logit_range, store=True, reduce=reduce)
    scalings = solve(kernel, iterations, reduce)
    matrix = kernel.block(similarity.rows)
    image_rows = last_row_scalings(kernel, matrix, scalings.image_columns)
    image_to_text = kernel.domain.plan(matrix, image_rows, scalings.image_columns)
    return image_to_text, kernel.domain.plan(matrix, scalings.text_rows, scalings.text_columns)
