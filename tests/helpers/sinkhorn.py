"""Transport problems for sinkhorn_knopp, the reference's plans, and how far apart two plans are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from otter_losses import SinkhornResult, sinkhorn_knopp
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES

rounds = st.integers(1, 12)
dtypes = st.sampled_from((torch.float64, torch.float32))


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


def unit(dtype: torch.dtype, problem: Problem) -> float:
    """Rounding of a logarithm as large as score / epsilon, a few times over."""
    return 8 * torch.finfo(dtype).eps * (1 + 1 / problem.epsilon)


def reference_plan(problem: Problem, iterations: int) -> Tensor:
    plans = [reference.sinkhorn(p.scores, p.epsilon, iterations, p.rows, p.columns) for p in problem.to(torch.float64).each()]
    return torch.stack(plans).reshape(problem.scores.shape)


def l1(actual: Tensor, expected: Tensor) -> float:
    """L1 distance as a share of the expected mass; the worst of the batch."""
    wanted = expected.detach().double()
    distance = (actual.detach().double() - wanted).abs().sum((-2, -1)) / wanted.sum((-2, -1))
    return float(distance.max())
