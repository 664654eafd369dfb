"""Both transport problems of a batch of pairs, solved together on one matrix that need never be written.

The teacher's logits are ``L = a b^T`` (already divided by epsilon) with the diagonal lowered by a penalty: infinite removes it.
Image to text is the problem on ``L``, rows matched first; text to image is the problem on ``L^T``. With ``K = exp(L)`` both are
read off one sweep over the rows: ``u = 1/(K v)`` and the sums ``u K`` for the one, ``u' = 1/(K v')`` and ``u' K`` for the other.
One opening sweep (``K^T 1``, the text problem's first half step) and one sweep an iteration solve both, the last row
normalisation of the text problem included; the image problem's is one more product with each row as it is used.

    M_ij = u_i K_ij v_j     (image to text, rows sum to 1)
    M'_ij = u'_i K_ij v'_j   (text to image, transposed: columns sum to 1)

With no iteration this is the row softmax of ``L`` and of ``L^T``: plain distillation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, safe_range

CHUNK_ELEMENTS = 1 << 21
"""Elements of a row block worked on at once: 8 MiB of float32."""


def row_chunks(rows: int, columns: int) -> list[slice]:
    """Row blocks of about `CHUNK_ELEMENTS`, between 32 and 1024 rows each."""
    height = min(max(CHUNK_ELEMENTS // max(columns, 1), 32), 1024)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def factors(v: Tensor, t: Tensor, epsilon: float, gamma_image: float, gamma_text: float) -> tuple[Tensor, Tensor]:
    """``a, b`` with ``a b^T = (gamma_v v v^T + gamma_t t t^T + v t^T) / epsilon``, as narrow as the weights allow."""
    if gamma_text == 0:
        return v / epsilon, t if gamma_image == 0 else t + gamma_image * v
    if gamma_image == 0:
        return (v + gamma_text * t) / epsilon, t
    return torch.cat((v, t), dim=1) / epsilon, torch.cat((t + gamma_image * v, gamma_text * t), dim=1)


@dataclass(frozen=True)
class TeacherMatrix:
    """The teacher's logits ``L``, or ``exp(L - shift)``, stored whole or recomputed in row blocks."""

    a: Tensor
    b: Tensor
    diagonal_penalty: float
    domain: Domain
    shift: Tensor
    stored: Tensor | None

    @classmethod
    def build(cls, a: Tensor, b: Tensor, diagonal_penalty: float, spread: float | None, store: bool) -> "TeacherMatrix":
        """Choose the domain and, where asked, store the matrix.

        `spread`: an upper bound on ``max L - min L`` off the diagonal that is known without looking, or None. On the CPU a look
        costs nothing, so there the data decide.
        """
        logits = _logits(a, b, slice(0, len(a)), diagonal_penalty) if store else None
        low, high = _bounds(a, b, logits, diagonal_penalty)
        if a.device.type == "cpu":
            spread = float(high - low)
        domain: Domain = SCALING if spread is not None and spread <= safe_range(a.dtype) else LOGARITHMIC
        matrix = cls(a, b, diagonal_penalty, domain, high, logits)
        if logits is not None:
            for rows in row_chunks(*logits.shape):
                matrix._enter(logits[rows])
        return matrix

    @classmethod
    def restore(
        cls, a: Tensor, b: Tensor, diagonal_penalty: float, logarithmic: bool, shift: Tensor, stored: Tensor
    ) -> "TeacherMatrix":
        """The matrix as `build` left it; an empty `stored` means that it was not kept."""
        domain: Domain = LOGARITHMIC if logarithmic else SCALING
        return cls(a, b, diagonal_penalty, domain, shift, stored if stored.numel() else None)

    def _enter(self, logits: Tensor) -> Tensor:
        return logits.sub_(self.shift).exp_() if self.domain is SCALING else logits

    def block(self, rows: slice) -> Tensor:
        """The rows asked for. Do not write to it: it may be the stored matrix itself."""
        if self.stored is not None:
            return self.stored[rows]
        return self._enter(_logits(self.a, self.b, rows, self.diagonal_penalty))

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        """All row blocks in order; a stored kernel in one block, since matrix-vector products need no temporary."""
        n = len(self.a)
        whole = self.stored is not None and self.domain is SCALING
        for rows in [slice(0, n)] if whole else row_chunks(n, n):
            yield rows, self.block(rows)


def _logits(a: Tensor, b: Tensor, rows: slice, diagonal_penalty: float) -> Tensor:
    logits = a[rows] @ b.T
    if diagonal_penalty:
        logits.diagonal(rows.start).sub_(diagonal_penalty)
    return logits


def _bounds(a: Tensor, b: Tensor, logits: Tensor | None, diagonal_penalty: float) -> tuple[Tensor, Tensor]:
    """Bounds of ``L``: measured on a stored CPU matrix, else from the norms.

    The lower one leaves out a penalised diagonal: an entry that far below the others may vanish, as a removed one does.
    """
    if logits is None or logits.device.type != "cpu":
        bound = torch.linalg.vector_norm(a, dim=1).amax() * torch.linalg.vector_norm(b, dim=1).amax()
        return -bound, bound
    if not diagonal_penalty:
        low, high = torch.aminmax(logits)
        return low, high
    diagonal = logits.diagonal().clone()
    logits.diagonal().fill_(float(logits[0, -1]))
    low, high = torch.aminmax(logits)
    logits.diagonal().copy_(diagonal)
    return low, torch.maximum(high, diagonal.amax())


def solve(matrix: TeacherMatrix, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scalings ``v`` of the image problem's columns, ``u'`` and ``v'`` of the text problem's rows and columns."""
    domain = matrix.domain
    one = domain.enter(torch.ones_like(matrix.a[:, 0]))
    total: Tensor | None = None
    for rows, kernel in matrix.sweep():
        sums = domain.column_sums(kernel, one[rows])
        total = sums if total is None else domain.merge(total, sums)
    assert total is not None
    image_columns, text_columns, text_rows = one, domain.match(one, total), one
    for _ in range(iterations):
        image_total = text_total = None
        parts = []
        for rows, kernel in matrix.sweep():
            image_rows = domain.match(one[rows], domain.row_sums(kernel, image_columns))
            parts.append(domain.match(one[rows], domain.row_sums(kernel, text_columns)))
            image_sums = domain.column_sums(kernel, image_rows)
            text_sums = domain.column_sums(kernel, parts[-1])
            image_total = image_sums if image_total is None else domain.merge(image_total, image_sums)
            text_total = text_sums if text_total is None else domain.merge(text_total, text_sums)
        assert image_total is not None
        assert text_total is not None
        text_rows = torch.cat(parts)
        image_columns, text_columns = domain.match(one, image_total), domain.match(one, text_total)
    return image_columns, text_rows, text_columns
