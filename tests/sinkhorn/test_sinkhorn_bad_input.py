"""Bad input of sinkhorn_knopp: an error that names the argument, what came, what is needed and the fix."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import (
    sinkhorn_knopp,
)

HALF = torch.full((2,), 0.5)


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, r"scores is a list; need a torch\.Tensor"),
        (torch.zeros(3), {}, ValueError, r"scores has shape \(3,\); need \(\.\.\., M, N\)"),
        (torch.zeros(2, 2, dtype=torch.int32), {}, TypeError, r"scores has dtype torch\.int32; .*Convert: scores\.float\(\)"),
        (torch.tensor([[0.0, math.nan]]), {}, ValueError, "scores holds nan; need finite numbers, or -inf"),
        (torch.tensor([[0.0, math.inf]]), {}, ValueError, "scores holds inf; need finite numbers, or -inf"),
        (torch.zeros(2, 2), {"tolerance": -1e-3}, ValueError, "tolerance is -0.001; need a finite number of at least 0"),
        (torch.zeros(2, 2), {"tolerance": math.nan}, ValueError, "tolerance is nan; need"),
        (torch.zeros(2, 2), {"backend": "numpy"}, ValueError, "backend is 'numpy'; need one of"),
        (
            torch.zeros(2, 2),
            {"row_marginal": torch.tensor([1.5, -0.5])},
            ValueError,
            r"row_marginal has values from -0\.5 to 1\.5",
        ),
        (torch.zeros(2, 2), {"column_marginal": torch.tensor([1.5, -0.5])}, ValueError, "column_marginal has values from -0.5"),
        (torch.zeros(2, 2), {"row_marginal": torch.tensor([math.nan, 1.0])}, ValueError, "row_marginal has values"),
        (torch.zeros(2, 2), {"row_marginal": torch.tensor([math.inf, 1.0])}, ValueError, "row_marginal has values"),
        (torch.zeros(2, 2), {"row_marginal": torch.full((3,), 1 / 3)}, ValueError, r"row_marginal has shape \(3,\); need \(2,\)"),
        (torch.zeros(2, 2), {"row_marginal": torch.tensor([1, 0])}, TypeError, r"row_marginal has dtype torch\.int64"),
        (torch.zeros(2, 2), {"row_marginal": HALF.to("meta")}, ValueError, "row_marginal is on meta and scores on cpu"),
        (
            torch.zeros(2, 2),
            {"row_marginal": torch.zeros(2), "column_marginal": torch.zeros(2)},
            ValueError,
            "row_marginal sums to 0; need some mass",
        ),
        (
            torch.zeros(2, 2),
            {"row_marginal": 3 * HALF},
            ValueError,
            "row_marginal sums to 3 and column_marginal to 1; need equal masses",
        ),
        (torch.zeros(2, 2), {"column_potential": torch.zeros(3)}, ValueError, r"column_potential has shape \(3,\); need \(2,\)"),
        (
            torch.zeros(2, 2, requires_grad=True),
            {"row_marginal": HALF.clone().requires_grad_(), "implicit": True},
            ValueError,
            "implicit=True differentiates in scores only, but a marginal requires a gradient. Detach it",
        ),
    ],
)
def test_transport_problems_that_cannot_be_solved(
    scores: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sinkhorn_knopp(scores, **options)


def test_a_start_without_any_column_is_refused() -> None:
    with pytest.raises(ValueError, match="column_potential is -inf in every column"):
        sinkhorn_knopp(torch.zeros(2, 2, 2), column_potential=torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]]))


@pytest.mark.parametrize(("scores", "epsilon"), [(torch.full((2, 2), 1e38), 0.1), (torch.zeros(2, 2), 1e-40)])
def test_scores_that_overflow_once_divided_are_refused(scores: Tensor, epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn_knopp(scores, epsilon)


def test_the_smallest_epsilon_still_has_a_plan() -> None:
    plan = sinkhorn_knopp(torch.tensor([[1.0, -torch.inf], [0.0, 1.0]]), 1e-30)
    assert torch.equal(plan, 0.5 * torch.eye(2))


def test_shapes_alone_can_be_asked_for() -> None:
    assert sinkhorn_knopp(torch.empty(2, 3, 4, device="meta")).shape == (2, 3, 4)


@pytest.mark.parametrize("potential", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_refused(potential: float) -> None:
    with pytest.raises(ValueError, match="column_potential"):
        sinkhorn_knopp(torch.zeros(2, 2), column_potential=torch.tensor([0.0, potential]))


def test_unequal_masses_of_one_problem_of_a_batch_are_named_with_their_sums() -> None:
    marginal = torch.tensor([[0.5, 0.5], [0.5, 1.5]])
    with pytest.raises(ValueError, match="row_marginal sums to 2 and column_marginal to 1; need equal masses"):
        sinkhorn_knopp(torch.zeros(2, 2, 2), row_marginal=marginal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_marginals_are_equal_within_their_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (3, 50, 700):
        a, b = (torch.rand(size + extra, generator=generator).to(dtype) for extra in (0, 20))
        a, b = a / a.sum(), b.softmax(0)
        plan = sinkhorn_knopp(torch.rand(size, size + 20), row_marginal=a, column_marginal=b)
        torch.testing.assert_close(plan.sum(0), b.float(), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="need equal masses"):
        sinkhorn_knopp(torch.rand(size, size + 20), row_marginal=a, column_marginal=b * 1.05)
