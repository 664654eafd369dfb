"""sinkhorn_knopp: half precision and hard inputs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import sinkhorn_knopp
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, make_features
from tests.helpers.sinkhorn import l1, make_scores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [0.15, 0.01, 0.001])
def test_half_precision_scores_are_solved_as_the_float32_of_the_same_numbers(dtype: torch.dtype, epsilon: float) -> None:
    scores = make_scores("random", 41, 41, 0).to(dtype)
    plan = sinkhorn_knopp(scores, epsilon)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, sinkhorn_knopp(scores.float(), epsilon))
    assert l1(plan, reference.sinkhorn(scores.double(), epsilon, 5)) <= 1e-6 + 2e-7 / epsilon


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_get_gradients_of_their_own_dtype(dtype: torch.dtype) -> None:
    half = make_scores("random", 9, 9, 0).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    weights = make_scores("random", 9, 9, 1).float()
    (gradient,) = torch.autograd.grad((weights * sinkhorn_knopp(half)).sum(), half)
    (expected,) = torch.autograd.grad((weights * sinkhorn_knopp(full)).sum(), full)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected.to(dtype))


def test_autocast_leaves_the_plan_alone() -> None:
    scores = make_scores("random", 64, 64, 0).float()
    plain = sinkhorn_knopp(scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn_knopp(scores), plain)


def hard_scores(name: str) -> Tensor:
    """The table of hard inputs, as similarities with the diagonal removed."""
    family = {"outlier": "outlier", "equal": "equal", "duplicated": "duplicated"}.get(name, "clustered")
    v, t = make_features(family, 41, 16, seed=5)
    if name == "unnormalised":
        v, t = 10 * v, 10 * t
    return reference.similarity(v, t).fill_diagonal_(-math.inf)


@pytest.mark.parametrize("name", ["duplicated", "outlier", "equal", "unnormalised", "clustered"])
@pytest.mark.parametrize("epsilon", [0.15, 0.03, 0.01, 0.005, 0.001])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_hard_inputs_give_the_reference_plan(name: str, epsilon: float, tracked: bool, dtype: torch.dtype) -> None:
    scores = hard_scores(name).to(dtype)
    result = sinkhorn_knopp(scores.clone().requires_grad_(tracked), epsilon, return_result=True)
    size = float(scores.double().masked_fill(scores == -math.inf, 0.0).abs().max())
    bound = 1e-10 if dtype == torch.float64 else 1e-6 + 2e-7 * max(size / 3, 1) / epsilon
    assert bool(torch.isfinite(result.plan).all())
    torch.testing.assert_close(result.plan.sum(0).double(), torch.full((41,), 1 / 41).double(), rtol=max(bound, 1e-6), atol=0)
    assert l1(result.plan.detach(), reference.sinkhorn(scores.double(), epsilon, 5)) <= bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_every_epsilon_gives_the_reference_plan(family: str, dtype: torch.dtype, tracked: bool, size: float) -> None:
    """Its columns exact, its error told: also where a rounding of ``score / epsilon`` is larger than a logarithm of the plan."""
    scores = (size * make_scores(family, 23, 17, 4)).to(dtype)
    scores[3, 5] = scores[7, 2] = -math.inf
    rounding = 1e-13 if dtype == torch.float64 else 1e-6
    for epsilon in (1e30, 0.15, 1e-4, 1e-7, 3e-8, 1e-10, 1e-16, 1e-20, 1e-27):
        result = sinkhorn_knopp(scores.clone().requires_grad_(tracked), epsilon, 7, return_result=True)
        plan = result.plan.detach().double()
        torch.testing.assert_close(plan.sum(0), torch.full((17,), 1 / 17, dtype=torch.float64), rtol=rounding, atol=0)
        told = result.marginal_error.detach().double()
        torch.testing.assert_close(told, (plan.sum(1) - 1 / 23).abs().sum(), rtol=rounding, atol=rounding)
        assert l1(result.plan.detach(), reference.sinkhorn(scores.double(), epsilon, 7)) <= 30 * rounding


@pytest.mark.parametrize("epsilon", [1e-3, 1e-9, 1e-25])
def test_a_tiny_epsilon_with_marginals_and_batches(epsilon: float) -> None:
    scores = torch.stack([make_scores("random", 12, 9, seed).float() * 10**seed for seed in range(3)])
    rows, columns = torch.linspace(0, 2, 12), torch.linspace(3, 1, 9)
    rows, columns = rows / rows.sum(), columns / columns.sum()
    options: dict[str, Any] = {"row_marginal": rows, "column_marginal": columns}
    plans = sinkhorn_knopp(scores, epsilon, 9, **options)
    torch.testing.assert_close(plans.sum(1), columns.expand(3, 9), rtol=2e-6, atol=0)
    for plan, problem in zip(plans, scores, strict=True):
        assert torch.equal(plan, sinkhorn_knopp(problem, epsilon, 9, **options))
        assert l1(plan, reference.sinkhorn(problem.double(), epsilon, 9, rows.double(), columns.double())) <= 1e-5


def test_a_tiny_epsilon_stops_at_its_tolerance() -> None:
    """Where a matching is the answer, and found."""
    scores = torch.eye(6).flip(0) + 1e-3 * make_scores("random", 6, 6, 0).float()
    result = sinkhorn_knopp(scores, 1e-12, 100, tolerance=1e-6, return_result=True)
    assert result.iterations == 1
    assert float(result.marginal_error) == pytest.approx(float((result.plan.sum(1) - 1 / 6).abs().sum()), abs=1e-9)
    torch.testing.assert_close(result.plan, torch.eye(6).flip(0) / 6, rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [1e3, -1e3, 1e6])
def test_scores_far_from_zero_keep_the_digits_that_tell_them_apart(offset: float) -> None:
    scores = offset + make_scores("random", 9, 9, 0).float()
    for tracked in (False, True):
        plan = sinkhorn_knopp(scores.clone().requires_grad_(tracked), 0.05).detach()
        assert l1(plan, reference.sinkhorn(scores.double(), 0.05, 5)) <= 1e-5


@pytest.mark.parametrize("spread", [60.0, 79.0, 81.0, 100.0, 170.0, 200.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_right_on_both_sides_of_the_switch_to_logarithms(spread: float, family: str) -> None:
    scores = make_scores(family, 33, 29, 1).float()
    width = float(scores.max() - scores.min())
    epsilon = width / spread if width else 0.01
    assert l1(sinkhorn_knopp(scores, epsilon), reference.sinkhorn(scores.double(), epsilon, 5)) <= 1e-6 + 4e-7 / epsilon


@pytest.mark.parametrize("smallest", [1e-30, 1e-20, 1e-6])
def test_float32_survives_marginals_of_very_different_sizes(smallest: float) -> None:
    scores = make_scores("random", 8, 8, 1).float()
    marginal = torch.ones(8)
    marginal[::2] = smallest
    marginal /= marginal.sum()
    result = sinkhorn_knopp(scores, 0.03, row_marginal=marginal, column_marginal=marginal.flip(0), return_result=True)
    torch.testing.assert_close(result.plan.sum(0), marginal.flip(0), rtol=1e-4, atol=0)
    expected = reference.sinkhorn(scores.double(), 0.03, 5, marginal.double(), marginal.flip(0).double())
    assert l1(result.plan, expected) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["earlier", "far off", "with an outlier"])
@pytest.mark.parametrize("epsilon", [0.1, 1e-5, 1e-12, 1e-16, 1e-27])
def test_a_start_loses_no_mass(epsilon: float, start: str, dtype: torch.dtype) -> None:
    rounding = 2e-6 if dtype == torch.float32 else 1e-13
    for seed in range(20):
        scores, columns = make_scores("random", 6, 5, seed).to(dtype), torch.linspace(1, 3, 5, dtype=dtype)
        options: dict[str, Any] = {"column_marginal": columns / columns.sum(), "return_result": True}
        potential = sinkhorn_knopp(scores, epsilon, 3, **options).column_potential
        if start == "far off":
            potential = potential + 1e9 * torch.linspace(-1, 1, 5, dtype=dtype)
        elif start == "with an outlier":
            potential[2] = -1e12
        result = sinkhorn_knopp(scores, epsilon, 4, column_potential=potential, **options)
        torch.testing.assert_close(result.plan.sum(0), options["column_marginal"], rtol=rounding, atol=0)
        assert float(result.marginal_error) == pytest.approx(float((result.plan.sum(1) - 1 / 6).abs().sum()), abs=rounding)


def test_columns_stay_exact_in_thousands_of_rounds() -> None:
    """Of a problem without a solution, whose potentials diverge."""
    scores = torch.full((4, 4), -math.inf)
    scores[0], scores[:, 0] = 0.3, 0.1
    result = sinkhorn_knopp(scores, 0.01, 5000, return_result=True)
    torch.testing.assert_close(result.plan.sum(0), torch.full((4,), 0.25), rtol=1e-6, atol=0)
    assert float(result.marginal_error) > 0.4
