"""The teacher's similarities of all pairs with all pairs, whole or in row blocks.

    L_ij = (gamma_v v_i.v_j + gamma_t t_i.t_j + v_i.t_j) / epsilon,   the diagonal lowered by a penalty (infinite removes it)

In groups the entries of a group's pairs with one another are taken out with the diagonal.

That is one product of width 2E, ``[v, t] [gamma_v v + t, gamma_t t]^T``. With ``C = v t^T``,
``w = sqrt(gamma_v) v + sqrt(gamma_t) t`` and ``c = sqrt(gamma_v gamma_t)`` it is also

    gamma_v v v^T + gamma_t t t^T + v t^T = w w^T + (1 - c) C - c C^T

where ``w w^T`` is symmetric, so that half of it need be computed. Where the student is its own teacher C is at hand, which leaves
half a product of width E instead of two; another teacher at ``c = 1`` needs one and a half.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from otter_losses.ops.domains import largest_logit, reads_freely
from otter_losses.ops.groups import fill_own
from otter_losses.ops.memory import eager_blocks, slices
from otter_losses.ops.products import HALVES, as_multiplied, parts, product

PANEL = 256
"""Rows of a panel of the symmetric product; half a panel's share of it is computed twice."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Rows of the teacher's logits ``L``, (b, N).

    Attributes:
        image_features, text_features: ``v, t``, (N, E), L2-normalised.
        inv_epsilon: ``1 / epsilon``, 0-D, of the computing dtype.
        gamma_image, gamma_text: ``gamma_v, gamma_t``.
        diagonal_penalty: what the diagonal is lowered by, in units of the cosines.
        rows: the rows, of all N.
        groups: ids (N,) of the pairs whose entries with one another are taken out; None for the diagonal alone.
    """

    image_features: Tensor
    text_features: Tensor
    inv_epsilon: Tensor
    gamma_image: float
    gamma_text: float
    diagonal_penalty: float
    rows: slice
    groups: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows b and columns N."""
        return self.rows.stop - self.rows.start, len(self.image_features)

    @property
    def is_whole(self) -> bool:
        return self.shape[0] == self.shape[1]

    def as_multiplied(self, fits_plain_numbers: bool) -> "Similarity":
        """With features as they are multiplied; logits too large for plain numbers are too large for two half-precision ones."""
        dtype = self.inv_epsilon.dtype
        image, text = (
            as_multiplied(each) if fits_plain_numbers else each.to(dtype) for each in (self.image_features, self.text_features)
        )
        return replace(self, image_features=image, text_features=text)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``a, b`` with ``L = a b^T / epsilon`` but for the diagonal, as narrow as the weights allow.

        Of half-precision features both are those themselves, or float32 where the weights make sums of them.
        """
        v, t = self.image_features, self.text_features
        if self.gamma_image == self.gamma_text == 0:
            return v, t
        v, t = (each.to(self.inv_epsilon.dtype) for each in (v, t))
        if self.gamma_text == 0:
            return v, torch.add(t, v, alpha=self.gamma_image)
        if self.gamma_image == 0:
            return torch.add(v, t, alpha=self.gamma_text), t
        return torch.cat((v, t), dim=1), torch.cat((torch.add(t, v, alpha=self.gamma_image), self.gamma_text * t), dim=1)

    def scaled_factors(self) -> tuple[Tensor, Tensor]:
        """``a, b`` with ``L = a b^T`` but for the diagonal.

        Of half-precision features both are of their dtype: one factor as it is, twice, the other in two parts.
        """
        a, b = self.factors()
        dtype = self.image_features.dtype
        if dtype not in HALVES:
            return a * self.inv_epsilon, b
        if self.gamma_image == 0 < self.gamma_text:  # a is the sum
            return self._in_parts(a), torch.cat((b, b), 1).to(dtype)
        return torch.cat((a, a), 1).to(dtype), self._in_parts(b)

    def _in_parts(self, factor: Tensor) -> Tensor:
        """Over epsilon."""
        return torch.cat(parts(factor.to(self.inv_epsilon.dtype) * self.inv_epsilon, self.image_features.dtype), 1)

    @cached_property
    def _kept_factors(self) -> tuple[Tensor, Tensor]:
        return self.scaled_factors()

    def block(self, rows: slice) -> Tensor:
        """A row block (m, N) of these rows, computed anew."""
        a, b = self._kept_factors
        return self._lower_own(self._product(a[self.rows][rows], b), rows.start)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return product(a, b.T, out=self.inv_epsilon.new_empty(len(a), len(b)))

    def matrix(self, cross: Tensor | None) -> Tensor:
        """All rows in a new tensor (b, N), from ``cross = v t^T`` where the caller has it."""
        c = math.sqrt(self.gamma_image * self.gamma_text)
        halves = self.is_whole and reads_freely(self.image_features) and float(self.inv_epsilon) > 0
        if halves and cross is None and c == 1:
            matrix = _symmetric_product(self._w()).addmm_(
                self.text_features, self.image_features.T, alpha=-float(self.inv_epsilon)
            )
        elif halves and cross is not None:
            matrix = cross * self.inv_epsilon
            if self.gamma_image or self.gamma_text:
                _add_within(matrix, self._w(), c)
        else:
            a, b = self.scaled_factors()
            matrix = self._product(a[self.rows], b)
        return self._lower_own(matrix, 0)

    def _w(self) -> Tensor:
        """``w`` times the root of 1 / epsilon, so that its products come out scaled."""
        image, text = (math.sqrt(gamma * float(self.inv_epsilon)) for gamma in (self.gamma_image, self.gamma_text))
        return torch.add(self.image_features * image, self.text_features, alpha=text)

    def _lower_own(self, logits: Tensor, first: int) -> Tensor:
        """Lower the entries of pairs with themselves, or take out those with their group's; of some rows from the `first` on."""
        offset = self.rows.start + first
        if self.groups is not None:
            for rows in eager_blocks(logits.shape[0], logits.shape[1], logits.device):
                fill_own(logits[rows], self.groups, slice(offset + rows.start, offset + rows.stop), -math.inf)
        elif self.diagonal_penalty == math.inf:
            logits.diagonal(offset).fill_(-math.inf)
        elif self.diagonal_penalty:
            logits.diagonal(offset).sub_(self.diagonal_penalty * self.inv_epsilon)
        return logits

    def lowering(self) -> Tensor:
        """What the diagonal is lowered by in ``L``, 0-D; 0 where it is removed."""
        return self.inv_epsilon.abs() * (self.diagonal_penalty if self.diagonal_penalty < math.inf else 0.0)

    def bound(self) -> Tensor:
        """No entry is further from 0 than this, a penalised diagonal aside."""
        dtype, features = self.inv_epsilon.dtype, (self.image_features, self.text_features)
        image, text = (torch.linalg.vector_norm(each, dim=1, dtype=dtype).amax() for each in features)
        bound: Tensor = (self.gamma_image * image**2 + self.gamma_text * text**2 + image * text) * self.inv_epsilon.abs()
        return bound


def refuse_overflow(bound: Tensor) -> None:
    """An error for logits that are not far within their type."""
    largest, limit = float(bound), largest_logit(bound.dtype)
    if largest > limit:
        raise ValueError(
            f"the teacher's similarities over epsilon may reach {largest:g}; need at most {limit:g} in {bound.dtype}. "
            "Normalise its features, or raise epsilon."
        )


def _symmetric_product(w: Tensor) -> Tensor:
    """``w w^T``: panels up to the diagonal are computed, the rest copied."""
    matrix, space = w.new_empty(len(w), len(w)), w.new_empty(PANEL * len(w))
    for panel in slices(len(w), PANEL):
        computed = matrix[panel, : panel.stop]
        torch.mm(w[panel], w[: panel.stop].T, out=computed)
        above = matrix[: panel.start, panel]
        above.copy_(space[: above.numel()].view(above.shape).copy_(computed[:, : panel.start].T))
    return matrix


def _add_within(matrix: Tensor, w: Tensor, c: float) -> None:
    """``C <- w w^T + (1 - c) C - c C^T`` in place.

    Transposes go through contiguous panels: a walk down a column of the whole matrix would miss the cache at every step.
    """
    for panel in slices(len(w), PANEL):
        before = slice(0, panel.start)
        across, down = matrix[panel, : panel.stop], matrix[before, panel]
        within = w[panel] @ w[: panel.stop].T
        above = torch.sub(within[:, before], across[:, before], alpha=c).T.contiguous()
        within.sub_(matrix[: panel.stop, panel].contiguous().T.contiguous(), alpha=c)
        if c == 1:
            across.copy_(within)
            down.copy_(above)
        else:
            across.mul_(1 - c).add_(within)
            down.mul_(1 - c).add_(above)
