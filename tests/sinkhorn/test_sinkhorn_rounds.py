"""sinkhorn_knopp: the analytic way back through the rounds gives what autograd gives, and keeps two matrices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from otter_losses import SinkhornResult, sinkhorn_knopp
from tests.helpers.checks import relative
from tests.helpers.peak import Peak
from tests.helpers.sinkhorn import Problem, dtypes, make_scores, problems, rounds

Solve = Callable[[Tensor, Tensor, Tensor], SinkhornResult]


def weighed(result: SinkhornResult) -> Tensor:
    """A number that depends on the plan and on both potentials, where there are any."""
    total = torch.zeros((), dtype=result.plan.dtype)
    for seed, part in enumerate((result.plan, result.row_potential, result.column_potential)):
        weights = torch.rand(part.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(part.dtype)
        total = total + (weights * part.masked_fill(part == -torch.inf, 0.0)).sum()
    return total


def both_ways(solve: Solve, *given: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Gradients of ours and, as under any transform, of autograd."""
    leaves = [each.clone().requires_grad_() for each in given]
    ours = torch.autograd.grad(weighed(solve(*leaves)), leaves)
    autograd = torch.func.grad(lambda *given: weighed(solve(*given)), argnums=tuple(range(len(given))))(*given)
    return list(zip(ours, autograd, strict=True))


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_gradients_are_those_of_autograd(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    found = both_ways(
        lambda scores, rows, columns: Problem(scores, problem.epsilon, rows, columns).solve(iterations),
        problem.scores,
        problem.rows,
        problem.columns,
    )
    rounding = torch.finfo(dtype).eps * (1 + 1 / problem.epsilon)
    for ours, autograd in found:
        floor = float(torch.linalg.vector_norm(found[0][1])) + 1 / problem.epsilon
        assert relative(ours, autograd, floor) <= 30 * rounding


@pytest.mark.parametrize("epsilon", [1.0, 0.05, 1e-3, 1e-7, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_forbidden_pairs_and_any_epsilon(epsilon: float, dtype: torch.dtype) -> None:
    scores = make_scores("clustered", 11, 7, 2).to(dtype)
    scores[2, 3] = scores[5] = scores[:, 6] = -torch.inf
    rows, columns = torch.full((11,), 1 / 11, dtype=dtype), torch.full((7,), 1 / 7, dtype=dtype)
    found = both_ways(lambda *given: Problem(given[0], epsilon, *given[1:]).solve(6), scores, rows, columns)
    for ours, autograd in found:
        assert bool(ours.isfinite().all())
        assert relative(ours, autograd, floor=1 / epsilon) <= 1e3 * torch.finfo(dtype).eps
    assert not found[0][0][5].any()


@pytest.mark.parametrize("epsilon", [0.2, 0.003])
def test_more_rounds_than_are_multiplied_out_at_once(epsilon: float) -> None:
    scores = torch.stack([make_scores("random", 9, 6, seed) for seed in (0, 1)])
    rows, columns = torch.full((9,), 1 / 9, dtype=torch.float64), torch.full((6,), 1 / 6, dtype=torch.float64)
    for ours, autograd in both_ways(lambda *given: Problem(given[0], epsilon, *given[1:]).solve(150), scores, rows, columns):
        assert relative(ours, autograd, floor=1.0) <= 1e-9


@pytest.mark.parametrize("epsilon", [0.3, 0.004])
def test_problems_that_stop_at_different_rounds(epsilon: float) -> None:
    """Each has the gradient of its own rounds."""
    scores = torch.stack([size * make_scores("random", 5, 4, 3) for size in (0.0, 0.05, 1.0)]).double()
    weights = make_scores("random", 5, 4, 8)
    leaf = scores.clone().requires_grad_()
    result = sinkhorn_knopp(leaf, epsilon, 500, tolerance=1e-4, return_result=True)
    (together,) = torch.autograd.grad((weights * result.plan).sum(), leaf)
    done = set()
    for problem, found in zip(scores, together, strict=True):
        alone = problem.clone().requires_grad_()
        stopped = sinkhorn_knopp(alone, epsilon, 500, tolerance=1e-4, return_result=True)
        done.add(stopped.iterations)
        exact = sinkhorn_knopp(alone, epsilon, stopped.iterations)
        (wanted,) = torch.autograd.grad((weights * exact).sum(), alone)
        assert relative(found, wanted, floor=1e-3) <= 1e-9
    assert len(done) == 3
    assert result.iterations == max(done)


@pytest.mark.parametrize("tolerance", [None, 1e-3])
@pytest.mark.parametrize("epsilon", [0.4, 0.05])
def test_gradient_by_a_start(epsilon: float, tolerance: float | None) -> None:
    scores = torch.stack([make_scores("random", 4, 5, seed) for seed in (0, 1)])

    def solve(scores: Tensor, start: Tensor) -> Any:
        rounds = 2 if tolerance is None else 60
        return sinkhorn_knopp(scores, epsilon, rounds, column_potential=start, tolerance=tolerance)

    start = torch.linspace(-1, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(solve, (scores.requires_grad_(), start.requires_grad_()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.4, 0.02])
def test_second_derivatives_and_many_gradients_at_once(epsilon: float) -> None:
    leaf = (20 * epsilon * make_scores("random", 4, 3, 0)).requires_grad_()

    def solve(scores: Tensor) -> Tensor:
        return sinkhorn_knopp(scores, epsilon, 3)

    assert torch.autograd.gradgradcheck(solve, (leaf,), eps=1e-7, atol=1e-3)
    plan, several = solve(leaf), torch.stack([make_scores("random", 4, 3, seed) for seed in (5, 6)])
    (together,) = torch.autograd.grad(plan, leaf, several, is_grads_batched=True, retain_graph=True)
    for gradient, found in zip(several, together, strict=True):
        assert relative(found, torch.autograd.grad(plan, leaf, gradient, retain_graph=True)[0]) <= 1e-12


@pytest.mark.parametrize("spread", [30.0, 39.0, 41.0, 79.0, 200.0])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_float32_gradients_of_any_size_on_both_sides_of_the_switch_to_logarithms(spread: float, size: float) -> None:
    scores, weights = make_scores("random", 33, 29, 1).float(), size * make_scores("random", 33, 29, 2).float()
    epsilon = float(scores.max() - scores.min()) / spread
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = scores.to(dtype).requires_grad_()
        plan = sinkhorn_knopp(leaf, epsilon, 20)
        gradients.append(torch.autograd.grad(plan, leaf, weights.to(dtype))[0])
    assert relative(gradients[0], gradients[1]) <= 1e-6 * spread


def test_scores_made_in_inference_mode() -> None:
    with torch.inference_mode():
        scores = make_scores("random", 4, 5, 0)
    rows = torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True)
    plan = sinkhorn_knopp(scores, row_marginal=rows)
    (gradient,) = torch.autograd.grad((plan**2).sum(), rows)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("iterations", [3, 60])
@pytest.mark.parametrize(("epsilon", "matrices"), [(0.15, 3), (0.005, 5)])
@pytest.mark.parametrize("half", [False, True])
def test_peak_memory_does_not_grow_with_the_rounds(iterations: int, epsilon: float, matrices: int, half: bool) -> None:
    """The plan, its gradient's matrix and the kernel; in logarithms the kernel is two, and a step's shares are one."""
    leaf = make_scores("random", 400, 300, 0).to(torch.bfloat16 if half else torch.float32).requires_grad_()
    weights = torch.ones(()).expand(400, 300)
    with Peak() as counted:
        plan = sinkhorn_knopp(leaf, epsilon, iterations)
        torch.autograd.grad(plan, leaf, weights)
    vectors = 2 * iterations * 700 * (2 if epsilon < 0.1 else 1) + 64 * 2 * 700
    allowed = matrices + (1 if half and epsilon < 0.1 else 0)
    assert (matrices - 1) * 400 * 300 < counted.most / 4 <= (allowed + 0.1) * 400 * 300 + vectors
