"""sinkhorn_knopp: gradients, unrolled and implicit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import sinkhorn_knopp
from tests.helpers.checks import relative
from tests.helpers.sinkhorn import make_scores


def gradient_problem(seed: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.stack([make_scores("random", 4, 5, seed), make_scores("random", 4, 5, seed + 1)])
    rows = torch.tensor([0.4, 0.0 if zeros else 0.1, 0.3, 0.3], dtype=torch.float64)
    columns = torch.tensor([0.25, 0.25, 0.0 if zeros else 0.1, 0.3, 0.2], dtype=torch.float64)
    return scores, rows / rows.sum(), columns / columns.sum()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("iterations", [1, 5])
def test_unrolled_gradient_is_that_of_finite_differences(zeros: bool, iterations: int) -> None:
    scores, rows, columns = gradient_problem(0, zeros)

    def solve(scores: Tensor) -> Any:
        return sinkhorn_knopp(scores, 0.4, iterations, row_marginal=rows, column_marginal=columns)

    assert torch.autograd.gradcheck(solve, (scores.requires_grad_(),))


def test_unrolled_gradient_by_the_marginals_is_that_of_finite_differences() -> None:
    scores, rows, columns = gradient_problem(0, zeros=False)

    def solve(scores: Tensor, rows: Tensor, columns: Tensor) -> Any:
        return sinkhorn_knopp(scores, 0.4, 3, row_marginal=rows, column_marginal=columns)

    # Steps of 1e-6 unbalance the masses by less than the check tolerates.
    assert torch.autograd.gradcheck(solve, (scores.requires_grad_(), rows.requires_grad_(), columns.requires_grad_()))


@pytest.mark.parametrize("name", ["row_potential", "column_potential", "marginal_error"])
def test_gradient_through_the_other_results_is_that_of_finite_differences(name: str) -> None:
    scores, rows, columns = gradient_problem(0, zeros=False)

    def solve(scores: Tensor) -> Any:
        result = sinkhorn_knopp(scores, 0.4, 2, row_marginal=rows, column_marginal=columns, return_result=True)
        return getattr(result, name)

    assert torch.autograd.gradcheck(solve, (scores.requires_grad_(),))


def test_gradient_passes_around_forbidden_pairs() -> None:
    forbidden = torch.eye(4, dtype=torch.bool)

    def solve(scores: Tensor) -> Any:
        return sinkhorn_knopp(scores.masked_fill(forbidden, -math.inf), 0.4, 3)

    assert torch.autograd.gradcheck(solve, (make_scores("random", 4, 4, 2).requires_grad_(),))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("epsilon", [1.0, 0.2])
def test_implicit_gradient_is_the_unrolled_one_at_convergence(zeros: bool, epsilon: float) -> None:
    scores, rows, columns = gradient_problem(3, zeros)
    weights = make_scores("random", 4, 5, 9)
    gradients = []
    for implicit in (False, True):
        leaf = scores.clone().requires_grad_()
        plan = sinkhorn_knopp(
            leaf, epsilon, 5_000, row_marginal=rows, column_marginal=columns, tolerance=1e-14, implicit=implicit
        )
        gradients.append(torch.autograd.grad((weights * plan).sum(), leaf)[0])
    assert float(gradients[0].abs().sum()) > 1e-3
    assert relative(gradients[1], gradients[0]) <= 1e-9


def test_implicit_gradient_is_that_of_finite_differences() -> None:
    scores, rows, columns = gradient_problem(3, zeros=True)

    def solve(scores: Tensor) -> Any:
        return sinkhorn_knopp(scores, 0.4, 5_000, row_marginal=rows, column_marginal=columns, tolerance=1e-15, implicit=True)

    assert torch.autograd.gradcheck(solve, (scores.requires_grad_(),))


def test_implicit_gradient_passes_around_forbidden_pairs() -> None:
    forbidden = torch.eye(5, dtype=torch.bool)
    weights = make_scores("random", 5, 5, 8)
    gradients = []
    for implicit in (False, True):
        leaf = make_scores("random", 5, 5, 2).requires_grad_()
        plan = sinkhorn_knopp(leaf.masked_fill(forbidden, -math.inf), 0.4, 5_000, tolerance=1e-14, implicit=implicit)
        gradients.append(torch.autograd.grad((weights * plan).sum(), leaf)[0])
    assert float(gradients[0].abs().sum()) > 1e-3
    assert relative(gradients[1], gradients[0]) <= 1e-9


def test_float32_gradient_is_the_float64_one() -> None:
    scores = make_scores("random", 41, 30, 4).float()
    weights = make_scores("random", 41, 30, 5)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = scores.to(dtype).requires_grad_()
        gradients.append(torch.autograd.grad((weights.to(dtype) * sinkhorn_knopp(leaf, 0.05)).sum(), leaf)[0])
    assert relative(gradients[0], gradients[1]) <= 1e-4


@pytest.mark.parametrize("implicit", [False, True])
def test_gradient_passes_around_items_that_may_match_nothing(implicit: bool) -> None:
    """A padded problem of a batch has the gradients of the problem without its padding."""
    scores, weights = make_scores("random", 3, 3, 5), make_scores("random", 3, 3, 6)
    small = scores[:2, :2].clone().requires_grad_()
    plan = sinkhorn_knopp(small, 0.4, 200, implicit=implicit)
    (wanted,) = torch.autograd.grad((weights[:2, :2] * plan).sum(), small)
    padded = scores.clone()
    padded[2], padded[:, 2] = -math.inf, -math.inf
    padded.requires_grad_()
    mass = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    plan = sinkhorn_knopp(padded, 0.4, 200, row_marginal=mass, column_marginal=mass, implicit=implicit)
    (actual,) = torch.autograd.grad((weights * plan).sum(), padded)
    assert relative(actual[:2, :2], wanted) <= 1e-9
    assert not actual[2].any()
    assert not actual[:, 2].any()


def test_gradient_by_a_marginal_is_finite_where_it_is_zero() -> None:
    mass = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    plan = sinkhorn_knopp(make_scores("random", 3, 3, 5), 0.4, 3, row_marginal=mass, column_marginal=mass.detach())
    (gradient,) = torch.autograd.grad((plan**2).sum(), mass)
    assert bool(gradient.isfinite().all())
    assert float(gradient[0]) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.02, 1e-3, 1e-6])
def test_implicit_gradient_of_a_hard_match_is_as_small_as_it_is(dtype: torch.dtype, epsilon: float) -> None:
    """Where no mass connects the parts of the plan, which makes the linear system singular many times over."""
    leaf = (torch.eye(7, dtype=dtype) + 0.1 * make_scores("random", 7, 7, 0).to(dtype)).requires_grad_()
    plan = sinkhorn_knopp(leaf, epsilon, 500, tolerance=1e-6, implicit=True)
    (gradient,) = torch.autograd.grad((make_scores("random", 7, 7, 1).to(dtype) * plan).sum(), leaf)
    assert float(gradient.abs().max()) <= 30 * torch.finfo(dtype).eps / epsilon
