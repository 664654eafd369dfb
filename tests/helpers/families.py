"""Data the tests share, the distances they measure with, and an oracle that has nothing in common with the library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from otter_losses import (
    DistillationLoss,
    InfoNCELoss,
    LabelSmoothingLoss,
    OTTERLoss,
    SigLIPLoss,
    SinkhornResult,
    sinkhorn_knopp,
)
from otter_losses.losses.base import PairLoss

LOSSES: dict[str, Callable[..., PairLoss]] = {
    "otter": OTTERLoss,
    "info_nce": InfoNCELoss,
    "label_smoothing": LabelSmoothingLoss,
    "distillation": DistillationLoss,
    "siglip": SigLIPLoss,
}
"""Every loss with its defaults."""

FAMILIES = ("random", "clustered", "duplicated", "outlier", "equal", "permutation")


# ---- features ----


def make_features(family: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit rows (n, d) of two modalities that agree about as well as a half-trained model's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image, text = normal(n, d), normal(n, d)
    if family == "random":
        text = image + text
    elif family == "clustered":
        centres = normal(3, d)[torch.randint(3, (n,), generator=generator)]
        image, text = centres + 0.1 * image, centres + 0.2 * text
    elif family == "duplicated":
        source = torch.randint(max(n // 2, 1), (n,), generator=generator)
        image, text = image[source], (image + text)[source]
    elif family == "outlier":
        centre = normal(1, d)
        image, text = centre + 0.05 * image, centre + 0.05 * text
        image[0] = -centre[0]
    elif family == "equal":
        image = text = normal(1, d).expand(n, d)
    elif family == "permutation":
        text = image[torch.randperm(n, generator=generator)] + 0.05 * text
    else:
        raise ValueError(family)
    return F.normalize(image, dim=1).to(dtype), F.normalize(text, dim=1).to(dtype)


@dataclass(frozen=True)
class Batch:
    """Leaves that require a gradient, and a teacher."""

    x: Tensor
    y: Tensor
    scale: Tensor
    v: Tensor
    t: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        """The same numbers, rounded to the dtype, as fresh leaves; the scale keeps its own."""
        x, y = (each.detach().to(dtype).requires_grad_() for each in (self.x, self.y))
        scale = self.scale.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        return Batch(x, y, scale, self.v.to(dtype), self.t.to(dtype))

    def gradients(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, scale = torch.autograd.grad(value, (self.x, self.y, self.scale))
        return x, y, scale

    def teacher(self) -> dict[str, Tensor]:
        return {"dist_image_features": self.v, "dist_text_features": self.t}


def make_batch(
    n: int, d: int, seed: int = 0, scale: float = 14.3, family: str = "random", dtype: torch.dtype = torch.float64
) -> Batch:
    """Student features of the family, rounded to float32 so that float32 and float64 see one problem; a teacher d + 3 wide."""
    x, y = (each.float() for each in make_features(family, n, d, seed))
    v, t = (each.float() for each in make_features(family, n, d + 3, seed + 1))
    return Batch(x, y, torch.tensor(scale), v, t).to(dtype)


# ---- distances ----


def relative(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of what is expected, or over the floor where that is larger."""
    difference = torch.linalg.vector_norm(actual.detach().double() - expected.detach().double())
    size = max(float(torch.linalg.vector_norm(expected.detach().double())), floor)
    return float(difference) / size if size else float(difference)


def worst_error(
    value: Tensor, gradients: Sequence[Tensor], expected: Tensor, expected_gradients: Sequence[Tensor], scale: float = 14.3
) -> float:
    """The largest relative error of a loss and its gradients by x, y and scale.

    The loss is a difference of numbers as large as the scale, the gradients are differences of distributions. Where those cancel,
    the error is measured against a share of the terms.
    """
    size = max(abs(scale), 1.0)
    feature_floor = 0.1 * size / len(expected_gradients[0]) ** 0.5
    errors = [relative(value, expected, floor=0.1 * size)]
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert actual.shape == wanted.shape
        errors.append(relative(actual, wanted, 0.1 if wanted.dim() == 0 else feature_floor))
    return max(errors)


# ---- transport problems ----


def make_scores(family: str, m: int, n: int, seed: int) -> Tensor:
    """Scores (m, n) in about [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(m, n, generator=generator, dtype=torch.float64) - 1
    if family == "random":
        return noise
    if family == "clustered":
        rows, columns = (torch.randint(2, (size,), generator=generator) for size in (m, n))
        return (rows[:, None] == columns).double() - 0.5 + 0.05 * noise
    if family == "duplicated":
        rows = torch.randint(max(m // 2, 1), (m,), generator=generator)
        columns = torch.randint(max(n // 2, 1), (n,), generator=generator)
        return noise[rows][:, columns]
    if family == "outlier":
        scores = 0.9 + 0.1 * noise
        scores[0] -= 1.8
        return scores
    if family == "equal":
        return torch.full((m, n), 0.7, dtype=torch.float64)
    if family == "permutation":
        matched = torch.randperm(max(m, n), generator=generator)[:m, None] == torch.arange(n)
        return matched.double() + 0.05 * noise
    raise ValueError(family)


@dataclass(frozen=True)
class Problem:
    scores: Tensor
    epsilon: float
    rows: Tensor
    columns: Tensor

    def to(self, dtype: torch.dtype) -> "Problem":
        return Problem(self.scores.to(dtype), self.epsilon, self.rows.to(dtype), self.columns.to(dtype))

    def solve(
        self, iterations: int = 5, scores: Tensor | None = None, tolerance: float | None = None, start: Tensor | None = None
    ) -> SinkhornResult:
        return sinkhorn_knopp(
            self.scores if scores is None else scores,
            self.epsilon,
            iterations,
            row_marginal=self.rows,
            column_marginal=self.columns,
            tolerance=tolerance,
            column_potential=start,
            return_result=True,
        )

    def each(self) -> "list[Problem]":
        """The problems of the batch, one by one."""
        m, n = self.scores.shape[-2:]
        batch = self.scores.shape[:-2]
        rows = self.rows.expand(*batch, m).reshape(-1, m)
        columns = self.columns.expand(*batch, n).reshape(-1, n)
        triples = zip(self.scores.reshape(-1, m, n), rows, columns, strict=True)
        return [Problem(scores, self.epsilon, a, b) for scores, a, b in triples]


def _marginal(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weights = torch.ones(shape, dtype=torch.float64)
    if kind != "uniform":
        weights = 0.05 + torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "zeros":
        zero = torch.rand(shape, generator=generator) < 0.4
        zero[..., 0] = False
        weights = weights.masked_fill(zero, 0.0)
    return weights / weights.sum(-1, keepdim=True)


@st.composite
def problems(
    draw: st.DrawFn,
    epsilons: Sequence[float] = (1.0, 0.15, 0.05, 0.01, 0.001),
    batches: Sequence[tuple[int, ...]] = ((), (3,), (2, 2)),
    marginals: Sequence[str] = ("uniform", "random", "zeros"),
    most: int = 9,
) -> Problem:
    m, n = draw(st.integers(1, most)), draw(st.integers(1, most))
    batch = draw(st.sampled_from(batches))
    seed = draw(st.integers(0, 2**16))
    kind = draw(st.sampled_from(marginals))
    own_marginals = draw(st.booleans())
    mass = draw(st.sampled_from((1.0, 2.5)))
    count = int(torch.tensor(batch).prod()) if batch else 1
    scores = torch.stack([make_scores(draw(st.sampled_from(FAMILIES)), m, n, seed + 7 * index) for index in range(count)])
    generator = torch.Generator().manual_seed(seed + 1)
    prefix = batch if own_marginals else ()
    rows, columns = _marginal(kind, (*prefix, m), generator), _marginal(kind, (*prefix, n), generator)
    return Problem(scores.reshape(*batch, m, n), draw(st.sampled_from(epsilons)), mass * rows, mass * columns)


# ---- the oracle: the equations as printed, in 60 decimal digits ----


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


# ---- what every loss must keep ----


def check_autocast(batch: Batch, evaluate: Callable[[], Tensor]) -> None:
    """Value and gradients are the same to the bit under autocast."""
    plain = evaluate()
    expected = batch.gradients(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = evaluate()
        gradients = batch.gradients(value)
    assert torch.equal(value, plain)
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(gradients, expected, strict=True))


def check_half(batch: Batch, value: Tensor, exact: Batch, expected: Tensor, rounding: float) -> None:
    """The float32 value is that of the rounded features; their gradients differ by the rounding to their own dtype."""
    assert value.dtype == torch.float32
    assert relative(value, expected, floor=1.0) <= 2e-6
    for actual, wanted in zip(batch.gradients(value)[:2], exact.gradients(expected)[:2], strict=True):
        assert actual.dtype == batch.x.dtype
        assert relative(actual, wanted) <= rounding
