"""The paper's equations as printed, in 60 decimal digits: an oracle that has nothing in common with the library."""

from decimal import Decimal, localcontext

import torch
from torch import Tensor


def _to_decimals(matrix: Tensor) -> list[list[Decimal]]:
    return [[Decimal(value) for value in row] for row in matrix.detach().double().tolist()]


def decimal_sinkhorn(
    scores: Tensor, epsilon: float, iterations: int, rows: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """``u <- a / (K v), v <- b / (K^T u)``, plan ``diag(u) K diag(v)``, in plain numbers that cannot overflow."""
    with localcontext() as context:
        context.prec = 60
        zero = Decimal(0)
        m, n = scores.shape
        a = [Decimal(1) / m] * m if rows is None else [Decimal(value) for value in rows.double().tolist()]
        b = [Decimal(1) / n] * n if columns is None else [Decimal(value) for value in columns.double().tolist()]
        kernel = [
            [zero if score.is_infinite() else (score / Decimal(epsilon)).exp() for score in row] for row in _to_decimals(scores)
        ]
        v = [Decimal(1)] * n
        u = [zero] * m
        for _ in range(iterations):
            u = [a[i] / sum((kernel[i][j] * v[j] for j in range(n)), zero) for i in range(m)]
            v = [b[j] / sum((kernel[i][j] * u[i] for i in range(m)), zero) for j in range(n)]
        plan = [[float(u[i] * kernel[i][j] * v[j]) for j in range(n)] for i in range(m)]
    return torch.tensor(plan, dtype=torch.float64).reshape(m, n)


def decimal_targets(v: Tensor, t: Tensor, epsilon: float, iterations: int, gamma_image: float, gamma_text: float) -> Tensor:
    """OTTER's image-to-text match: similarities entry by entry, no diagonal, transport, rows scaled to 1."""
    image, text = _to_decimals(v), _to_decimals(t)
    n = len(image)

    def dot(left: list[Decimal], right: list[Decimal]) -> Decimal:
        return sum((p * q for p, q in zip(left, right, strict=True)), Decimal(0))

    weights = Decimal(gamma_image), Decimal(gamma_text)
    scores = [
        [
            -torch.inf
            if i == j
            else float(weights[0] * dot(image[i], image[j]) + weights[1] * dot(text[i], text[j]) + dot(image[i], text[j]))
            for j in range(n)
        ]
        for i in range(n)
    ]
    plan = decimal_sinkhorn(torch.tensor(scores, dtype=torch.float64), epsilon, iterations)
    return plan / plan.sum(1, keepdim=True)
