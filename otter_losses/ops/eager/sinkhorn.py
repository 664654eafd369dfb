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
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.domains import NEARLY_NORMALISED, SCALING, Domain, Logarithmic, reads_freely, safe_range
from otter_losses.ops.memory import eager_blocks
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.similarity import Similarity, refuse_overflow
from otter_losses.ops.targets import diagonal_vanishes


@dataclass(frozen=True, eq=False)
class GibbsKernel:
    """Local rows of ``K = exp(L - shift)``, ``exp(L)`` where nobody looks at the numbers, or in the logarithmic domain ``L``.

    Stored whole, or recomputed block by block.

    Attributes:
        similarity: what ``L`` is computed from.
        domain: numbers, or their logarithms.
        shift: 0-D; no entry of ``L`` is further from 0, or greater where the CPU looked.
        stored: (b, N), or None.
    """

    similarity: Similarity
    domain: Domain
    shift: Tensor
    stored: Tensor | None

    @classmethod
    def build(
        cls, similarity: Similarity, logit_range: float, store: bool, reduce: Reduction, cross: Tensor | None = None
    ) -> "GibbsKernel":
        """Choose the domain, and store the matrix where asked; `solve` opens it.

        `logit_range` as in `SoftTargets`. On the CPU, where a look costs nothing, the features and, if need be, the stored matrix
        decide instead. `cross`: ``v t^T`` where the caller has it.
        """
        shift = similarity.bound()
        limit = safe_range(shift.dtype)
        lowered = similarity.lowering()
        if not reads_freely(shift) and logit_range <= limit:
            # Not normalised, and known too late for the other domain: rather no number than a wrong one.
            too_far = ~(2 * shift <= NEARLY_NORMALISED * limit)
            similarity = replace(similarity, inv_epsilon=similarity.inv_epsilon.masked_fill(too_far, torch.nan))
        logits = similarity.matrix(cross) if store else None
        if reads_freely(shift):
            refuse_overflow(shift)
            shift = reduce.all_reduce_max(shift)  # one decision, whatever a rank rounds
            logit_range = 2 * float(shift) + (0.0 if diagonal_vanishes(float(lowered), shift.dtype) else float(lowered))
            if logits is not None and not reduce.is_distributed and not logit_range <= limit:
                low, high = _extremes(logits, similarity)
                logit_range = float(high - low)
                shift = high if logit_range <= limit else torch.maximum(-low, high)
        is_logarithmic = logit_range > limit
        if is_logarithmic:
            shift = shift + lowered
        return cls(similarity, domain_of(is_logarithmic, shift), shift, logits)

    def _enter(self, logits: Tensor) -> Tensor:
        if isinstance(self.domain, Logarithmic):
            return self.domain.hold(logits)
        # Unless the shift was looked at, it is at most half of the safe range: exponentials have room without it.
        return (logits.sub_(self.shift) if reads_freely(self.shift) else logits).exp_()

    def row_blocks(self) -> list[slice]:
        return eager_blocks(*self.similarity.shape, self.shift.device)

    def block(self, rows: slice) -> Tensor:
        """The local rows asked for. Do not write to it: it may be the stored matrix itself."""
        held = self._enter(self.similarity.block(rows)) if self.stored is None else self.stored[rows]
        return self.domain.open(held)

    def opening(self) -> Iterator[tuple[slice, Tensor]]:
        """The first sweep, which a kernel that was just built needs: it brings the stored logits into the domain."""
        for rows in self.row_blocks():
            if self.stored is not None:
                self._enter(self.stored[rows])
            yield rows, self.block(rows)

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        for rows in self.row_blocks():
            yield rows, self.block(rows)


def domain_of(is_logarithmic: bool, shift: Tensor) -> Domain:
    """That of a Gibbs kernel with a shift."""
    return Logarithmic.up_to(shift) if is_logarithmic else SCALING


def _extremes(logits: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Least and greatest entry, without a diagonal so low that it carries no mass."""
    if similarity.groups is not None:
        blocks = [logits[rows] for rows in eager_blocks(logits.shape[0], logits.shape[1], logits.device)]
        high = torch.stack([block.amax() for block in blocks]).amax()
        low = torch.stack([block.masked_fill(block == -torch.inf, torch.inf).amin() for block in blocks]).amin()
        return low, high
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
    b, n = kernel.similarity.shape
    one = domain.enter(kernel.shift.new_ones(n))
    total: Tensor | None = None
    for rows, block in kernel.opening():
        sums = domain.column_sums(block, one[..., rows])
        total = sums if total is None else domain.merge(total, sums)
    assert total is not None
    scalings = Scalings(one, one[..., :b], domain.match(one, domain.all_reduce(total, reduce)))
    for _ in range(iterations):
        scalings = _round(kernel, scalings, one, reduce)
    return scalings


def _round(kernel: GibbsKernel, before: Scalings, one: Tensor, reduce: Reduction) -> Scalings:
    """Match the rows of both problems, and in the same sweep the columns."""
    domain = kernel.domain
    total: Tensor | None = None
    columns = torch.stack((before.image_columns, before.text_columns), -2)
    text_rows = []
    for rows, block in kernel.sweep():
        matched = domain.match(one[..., rows].unsqueeze(-2), _of_both(domain.row_sums, block, columns, domain))
        text_rows.append(matched[..., 1, :])
        sums = _of_both(domain.column_sums, block, matched, domain)
        total = sums if total is None else domain.merge(total, sums)
    assert total is not None
    image_columns, text_columns = domain.match(one.unsqueeze(-2), domain.all_reduce(total, reduce)).unbind(-2)
    return Scalings(image_columns, torch.cat(text_rows, -1), text_columns)


def _of_both(sums: Callable[[Tensor, Tensor], Tensor], block: Tensor, scalings: Tensor, domain: Domain) -> Tensor:
    """Sums with the scalings (..., 2, length) of both problems; on a device one product, which reads the block once."""
    if domain is SCALING and not reads_freely(block):
        return sums(block, scalings)
    return torch.stack([sums(block, each) for each in scalings.unbind(-2)], -2)


def last_row_scalings(kernel: GibbsKernel, block: Tensor, columns: Tensor) -> Tensor:
    """The image problem's last row normalisation, of a block."""
    one = kernel.domain.enter(kernel.shift.new_ones(block.shape[-2]))
    return kernel.domain.match(one, kernel.domain.row_sums(block, columns))


def plans(similarity: Similarity, logit_range: float, iterations: int, reduce: Reduction) -> tuple[Tensor, Tensor]:
    """``M`` and ``M'``, (N, N) each, written out."""
    kernel = GibbsKernel.build(similarity, logit_range, store=True, reduce=reduce)
    scalings = solve(kernel, iterations, reduce)
    image_plan, text_plan = kernel.shift.new_empty(2, *similarity.shape).unbind()
    for rows, block in kernel.sweep():
        image_rows = last_row_scalings(kernel, block, scalings.image_columns)
        image_plan[rows] = kernel.domain.plan(block, image_rows, scalings.image_columns)
        text_plan[rows] = kernel.domain.plan(block, scalings.text_rows[..., rows], scalings.text_columns)
    return image_plan, text_plan
