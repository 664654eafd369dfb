"""The teacher's similarities of all pairs with all pairs, whole or in row blocks.

    L_ij = (gamma_v v_i.v_j + gamma_t t_i.t_j + v_i.t_j) / epsilon,   the diagonal lowered by a penalty (infinite removes it)

That is one product of width 2E, ``[v, t] [gamma_v v + t, gamma_t t]^T``. With ``C = v t^T``,
``w = sqrt(gamma_v) v + sqrt(gamma_t) t`` and ``c = sqrt(gamma_v gamma_t)`` it is also

    gamma_v v v^T + gamma_t t t^T + v t^T = w w^T + (1 - c) C - c C^T

where ``w w^T`` is symmetric, so that half of it need be computed. Where the student is its own teacher C is at hand, which leaves
half a product of width E instead of two; another teacher at ``c = 1`` needs one and a half.
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from otter_losses.ops.domains import reads_freely

CHUNK_ELEMENTS = {"cpu": 1 << 19}
"""Elements of a row block worked on at once: on a CPU what its caches hold, elsewhere what fills the device: 1 << 25."""

LEAST_ROWS = {"cpu": 256}
"""Of a row block; elsewhere 512, below which adding its share of dy to the rest costs more than its product, and whole tiles of
128, which products and kernels work on."""

PANEL = 256
"""Rows of a panel of the symmetric product; half a panel's share of it is computed twice."""


def row_chunks(rows: int, columns: int, device: torch.device) -> list[slice]:
    """Row blocks of about `CHUNK_ELEMENTS`, at least `LEAST_ROWS` each."""
    height = max(CHUNK_ELEMENTS.get(device.type, 1 << 25) // max(columns, 1), LEAST_ROWS.get(device.type, 512))
    height = height if device.type == "cpu" else height // 128 * 128
    return _slices(rows, height)


def _slices(rows: int, height: int) -> list[slice]:
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


class Similarity:
    """``L`` of teacher features v, t (N, E); `sharpness` is ``1 / epsilon``, 0-D; the penalty is in units of the cosines."""

    def __init__(
        self,
        v: Tensor,
        t: Tensor,
        sharpness: Tensor,
        gamma_image: float,
        gamma_text: float,
        diagonal_penalty: float,
        own: slice | None = None,
    ) -> None:
        """`own`: the rows that are asked for here, of all; the columns are always all."""
        self.v, self.t, self.sharpness = v, t, sharpness
        self.gamma_image, self.gamma_text = gamma_image, gamma_text
        self.diagonal_penalty = diagonal_penalty
        self.own = slice(0, len(v)) if own is None else own

    @property
    def is_whole(self) -> bool:
        return self.own == slice(0, len(self.v))

    def to(self, dtype: torch.dtype) -> "Similarity":
        """The same with features of that dtype."""
        features = self.v.to(dtype), self.t.to(dtype)
        return Similarity(*features, self.sharpness, self.gamma_image, self.gamma_text, self.diagonal_penalty, self.own)

    def factors(self) -> tuple[Tensor, Tensor]:
        """``a, b`` with ``L = a b^T / epsilon`` but for the diagonal, as narrow as the weights allow.

        Of half-precision features both are those themselves, or float32 where the weights make sums of them.
        """
        v, t = self.v, self.t
        if self.gamma_image == self.gamma_text == 0:
            return v, t
        v, t = (each.to(self.sharpness.dtype) for each in (v, t))
        if self.gamma_text == 0:
            return v, torch.add(t, v, alpha=self.gamma_image)
        if self.gamma_image == 0:
            return torch.add(v, t, alpha=self.gamma_text), t
        return torch.cat((v, t), dim=1), torch.cat((torch.add(t, v, alpha=self.gamma_image), self.gamma_text * t), dim=1)

    @cached_property
    def _scaled_factors(self) -> tuple[Tensor, Tensor]:
        a, b = self.factors()
        return a * self.sharpness, b

    def rows(self, rows: slice) -> Tensor:
        """A row block (b, N), computed anew."""
        a, b = self._scaled_factors
        return self._lower_diagonal(a[self.own][rows] @ b.T, rows.start)

    def matrix(self, cross: Tensor | None) -> Tensor:
        """All own rows of ``L`` in a new tensor (b, N), from ``cross = v t^T`` where the caller has it."""
        c = math.sqrt(self.gamma_image * self.gamma_text)
        halves = self.is_whole and reads_freely(self.v) and float(self.sharpness) > 0
        if halves and cross is None and c == 1:
            matrix = _symmetric_product(self._w()).addmm_(self.t, self.v.T, alpha=-float(self.sharpness))
        elif halves and cross is not None:
            matrix = cross * self.sharpness
            if self.gamma_image or self.gamma_text:
                _add_within(matrix, self._w(), c)
        else:
            a, b = self._scaled_factors
            matrix = a[self.own] @ b.T
        return self._lower_diagonal(matrix, 0)

    def _w(self) -> Tensor:
        """``w`` times the root of the sharpness, so that its products come out scaled."""
        image, text = (math.sqrt(gamma * float(self.sharpness)) for gamma in (self.gamma_image, self.gamma_text))
        return torch.add(self.v * image, self.t, alpha=text)

    def _lower_diagonal(self, logits: Tensor, first: int) -> Tensor:
        offset = self.own.start + first
        if self.diagonal_penalty == math.inf:
            logits.diagonal(offset).fill_(-math.inf)
        elif self.diagonal_penalty:
            logits.diagonal(offset).sub_(self.diagonal_penalty * self.sharpness)
        return logits

    def bound(self) -> Tensor:
        """No entry is further from 0 than this, a penalised diagonal aside."""
        dtype = self.sharpness.dtype
        image, text = (torch.linalg.vector_norm(features, dim=1, dtype=dtype).amax() for features in (self.v, self.t))
        bound: Tensor = (self.gamma_image * image**2 + self.gamma_text * text**2 + image * text) * self.sharpness.abs()
        return bound


def _symmetric_product(w: Tensor) -> Tensor:
    """``w w^T``: panels up to the diagonal are computed, the rest copied."""
    matrix, space = w.new_empty(len(w), len(w)), w.new_empty(PANEL * len(w))
    for panel in _slices(len(w), PANEL):
        computed = matrix[panel, : panel.stop]
        torch.mm(w[panel], w[: panel.stop].T, out=computed)
        above = matrix[: panel.start, panel]
        above.copy_(space[: above.numel()].view(above.shape).copy_(computed[:, : panel.start].T))
    return matrix


def _add_within(matrix: Tensor, w: Tensor, c: float) -> None:
    """``C <- w w^T + (1 - c) C - c C^T`` in place.

    Transposes go through contiguous panels: a walk down a column of the whole matrix would miss the cache at every step.
    """
    for panel in _slices(len(w), PANEL):
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
