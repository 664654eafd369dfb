"""sinkhorn_knopp: the properties that plans and potentials have, whatever the solver."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from otter_losses import SinkhornResult, sinkhorn_knopp
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES
from tests.helpers.decimals import decimal_sinkhorn
from tests.helpers.sinkhorn import Problem, dtypes, l1, make_scores, problems, reference_plan, rounds, unit

# ---- 1 to 6: marginals, values ----


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_columns_matched_last_are_exact(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    sums = problem.solve(iterations).plan.sum(-2)
    assert bool(((sums - problem.columns).abs() <= unit(dtype, problem) * problem.columns).all())


@given(problem=problems(), iterations=rounds)
def test_row_error_never_grows_with_rounds(problem: Problem, iterations: int) -> None:
    before = problem.solve(iterations).marginal_error
    after = problem.solve(iterations + 1).marginal_error
    assert bool((after <= before + 1e-11 * problem.columns.sum(-1)).all())


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_marginal_error_is_that_of_the_plan(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    result = problem.solve(iterations)
    expected = (result.plan.double().sum(-1) - problem.rows.double()).abs().sum(-1)
    assert result.marginal_error.shape == problem.scores.shape[:-2]
    assert bool(((result.marginal_error - expected).abs() <= unit(dtype, problem) * problem.rows.sum(-1)).all())


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_plan_is_finite_non_negative_and_of_the_right_mass(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    plan = problem.solve(iterations).plan
    assert plan.dtype == dtype
    assert plan.shape == problem.scores.shape
    assert bool(torch.isfinite(plan).all())
    assert bool((plan >= 0).all())
    mass = problem.columns.sum(-1)
    assert bool(((plan.sum((-2, -1)) - mass).abs() <= unit(dtype, problem) * mass).all())


@given(problem=problems(), iterations=rounds)
def test_float64_equals_the_reference(problem: Problem, iterations: int) -> None:
    assert l1(problem.solve(iterations).plan, reference_plan(problem, iterations)) <= 1e-10


@given(problem=problems(), iterations=rounds)
def test_float32_equals_the_reference_on_the_same_numbers(problem: Problem, iterations: int) -> None:
    problem = problem.to(torch.float32)
    assert l1(problem.solve(iterations).plan, reference_plan(problem, iterations)) <= 1e-6 + 2e-7 / problem.epsilon


@given(problem=problems(batches=((),), most=5, marginals=("uniform", "random")), iterations=st.integers(1, 6))
def test_equals_the_equations_in_sixty_digits(problem: Problem, iterations: int) -> None:
    expected = decimal_sinkhorn(problem.scores, problem.epsilon, iterations, problem.rows, problem.columns)
    assert l1(problem.solve(iterations).plan, expected) <= 1e-10


@given(problem=problems(epsilons=(1.0, 0.15, 0.05, 0.01), marginals=("uniform", "random")), iterations=rounds)
def test_cross_ratios_are_those_of_the_kernel_after_any_round(problem: Problem, iterations: int) -> None:
    logs = problem.solve(iterations).plan.log()
    if problem.epsilon <= 0.01:
        logs = torch.where(logs > -600, logs, torch.nan)
    exponents = problem.scores / problem.epsilon
    ratios, expected = (z - z[..., :1, :] - z[..., :, :1] + z[..., :1, :1] for z in (logs, exponents))
    known = torch.isfinite(ratios)
    assert bool(known[..., 0, :].any() | (problem.epsilon <= 0.01))
    assert bool(((ratios - expected).abs()[known] <= 1e-10 * (1 + 1 / problem.epsilon)).all())


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_plain_and_logarithmic_paths_agree(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    """A gradient or a starting point asks for logarithms; without them wide spreads do."""
    problem = problem.to(dtype)
    plain = problem.solve(iterations)
    tracked = problem.solve(iterations, scores=problem.scores.clone().requires_grad_())
    started = problem.solve(iterations, start=torch.zeros_like(problem.scores[..., 0, :]))
    bound = 2 * unit(dtype, problem)
    for other in (tracked, started):
        assert l1(other.plan, plain.plan) <= bound
        assert bool(((other.marginal_error - plain.marginal_error).abs() <= bound * problem.rows.sum(-1)).all())


# ---- 7 to 12: symmetries ----


@given(problem=problems(epsilons=(1.0, 0.15)))
def test_transposed_problem_has_the_transposed_plan_at_convergence(problem: Problem) -> None:
    plan = problem.solve(20_000, tolerance=1e-12).plan
    other = Problem(problem.scores.mT, problem.epsilon, problem.columns, problem.rows).solve(20_000, tolerance=1e-12).plan
    assert l1(other.mT, plan) <= 1e-10


@given(problem=problems(batches=((),)), iterations=rounds, seed=st.integers(0, 99))
def test_permuting_the_problem_permutes_the_plan(problem: Problem, iterations: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n = problem.scores.shape
    rows, columns = torch.randperm(m, generator=generator), torch.randperm(n, generator=generator)
    permuted = Problem(problem.scores[rows][:, columns], problem.epsilon, problem.rows[rows], problem.columns[columns])
    assert l1(permuted.solve(iterations).plan, problem.solve(iterations).plan[rows][:, columns]) <= 1e-10


@given(problem=problems(), iterations=rounds, size=st.sampled_from((0.3, 3.0, 40.0)))
def test_shifting_rows_of_the_scores_changes_nothing(problem: Problem, iterations: int, size: float) -> None:
    shifts = size * torch.linspace(-1, 1, problem.scores.shape[-2], dtype=torch.float64).unsqueeze(-1)
    shifted = problem.solve(iterations, scores=problem.scores + shifts)
    assert l1(shifted.plan, problem.solve(iterations).plan) <= 1e-12 * (1 + size) / problem.epsilon


@given(problem=problems(), iterations=rounds, factor=st.sampled_from((0.01, 0.7, 3.0, 1000.0)))
def test_scaling_scores_and_epsilon_together_changes_nothing(problem: Problem, iterations: int, factor: float) -> None:
    scaled = Problem(factor * problem.scores, factor * problem.epsilon, problem.rows, problem.columns)
    assert l1(scaled.solve(iterations).plan, problem.solve(iterations).plan) <= 1e-10


@given(problem=problems(marginals=("uniform",), batches=((),)), iterations=rounds, dtype=dtypes)
def test_duplicated_rows_get_equal_rows(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    scores = torch.cat((problem.scores, problem.scores[:1])).to(dtype)
    plan = sinkhorn_knopp(scores, problem.epsilon, iterations)
    bound = 8 * torch.finfo(dtype).eps
    assert float(plan[0].sum()) > 0
    assert bool(((plan[0] - plan[-1]).abs() <= bound * plan[0]).all())


@given(problem=problems(), iterations=rounds)
def test_multiplying_the_mass_multiplies_the_plan(problem: Problem, iterations: int) -> None:
    heavier = Problem(problem.scores, problem.epsilon, 7 * problem.rows, 7 * problem.columns)
    assert l1(heavier.solve(iterations).plan, 7 * problem.solve(iterations).plan) <= 1e-10


@pytest.mark.parametrize("n", [2, 3, 41])
@pytest.mark.parametrize("epsilon", [1.0, 0.15, 0.01, 0.001])
@pytest.mark.parametrize("tracked", [False, True])
def test_forbidden_pairs_get_exactly_nothing(n: int, epsilon: float, tracked: bool) -> None:
    scores = make_scores("random", n, n, 3).fill_diagonal_(-math.inf).requires_grad_(tracked)
    plan = sinkhorn_knopp(scores, epsilon)
    assert bool((plan.diagonal() == 0).all())
    assert l1(plan, reference.sinkhorn(scores.detach(), epsilon, 5)) <= 1e-10


def test_two_items_that_may_not_match_themselves_are_swapped() -> None:
    scores = torch.tensor([[-math.inf, 0.3], [-0.8, -math.inf]])
    torch.testing.assert_close(sinkhorn_knopp(scores, 0.01), torch.tensor([[0.0, 0.5], [0.5, 0.0]]), rtol=1e-6, atol=0)


def test_one_item_takes_the_whole_mass() -> None:
    assert sinkhorn_knopp(torch.tensor([[0.4]])).tolist() == [[1.0]]


@pytest.mark.parametrize("tracked", [False, True])
def test_a_row_without_any_permitted_pair_gets_no_mass_and_the_error_says_so(tracked: bool) -> None:
    scores = make_scores("random", 4, 5, 0)
    scores[1] = -math.inf
    result = sinkhorn_knopp(scores.requires_grad_(tracked), 0.15, 50, return_result=True)
    assert bool((result.plan[1] == 0).all())
    assert bool(torch.isfinite(result.plan).all())
    torch.testing.assert_close(result.plan.sum(0), torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.marginal_error, torch.tensor(0.5, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_single_forbidden_pair_gives_an_empty_plan_and_the_error_says_so() -> None:
    result = sinkhorn_knopp(torch.tensor([[-math.inf]]), return_result=True)
    assert result.plan.tolist() == [[0.0]]
    assert float(result.marginal_error) == 1.0


@given(problem=problems(marginals=("zeros",)), iterations=rounds, dtype=dtypes)
def test_zero_marginals_give_exact_zeros_and_infinite_potentials(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    result = problem.to(dtype).solve(iterations)
    empty_rows = (problem.rows == 0).expand(result.row_potential.shape)
    empty_columns = (problem.columns == 0).expand(result.column_potential.shape)
    assert bool((result.plan[empty_rows] == 0).all())
    assert bool((result.plan.mT[empty_columns] == 0).all())
    assert torch.equal(result.row_potential == -math.inf, empty_rows)
    assert torch.equal(result.column_potential == -math.inf, empty_columns)


# ---- 13, 14: limits and duality ----


@given(problem=problems())
def test_huge_epsilon_gives_the_product_of_the_marginals(problem: Problem) -> None:
    wide = Problem(problem.scores, 1e9, problem.rows, problem.columns)
    product = problem.rows.unsqueeze(-1) * problem.columns.unsqueeze(-2) / problem.rows.sum(-1)[..., None, None]
    assert l1(wide.solve(2).plan, product.expand_as(problem.scores)) <= 1e-8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [2, 5, 12])
@pytest.mark.parametrize("epsilon", [0.1, 0.02])
def test_small_epsilon_meets_the_best_assignment_within_epsilon_log_n(family: str, n: int, epsilon: float) -> None:
    scores = make_scores(family, n, n, seed=n)
    result = sinkhorn_knopp(scores, epsilon, 5_000, tolerance=1e-6, return_result=True)
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    best = float(scores[rows, columns].mean())
    got = float((result.plan * scores).sum())
    error = float(result.marginal_error)
    # A plan whose rows are off by that much is that far from a feasible one.
    slack = 4 * error * float(scores.abs().max()) + 1e-12
    assert error <= 1e-4
    assert best - epsilon * math.log(n) - slack <= got <= best + slack


def test_tiny_epsilon_is_the_best_assignment_itself() -> None:
    scores = make_scores("random", 7, 7, seed=5)
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    expected = torch.zeros_like(scores)
    expected[rows, columns] = 1 / 7
    assert l1(sinkhorn_knopp(scores, 0.004, 20_000, tolerance=1e-7), expected) <= 1e-3


def primal(problem: Problem, plan: Tensor) -> Tensor:
    value: Tensor = (plan * problem.scores / problem.epsilon + plan + torch.special.entr(plan)).sum((-2, -1))
    return value


def dual(problem: Problem, result: SinkhornResult) -> Tensor:
    def expected_potential(marginal: Tensor, potential: Tensor) -> Tensor:
        expected: Tensor = torch.where(marginal > 0, marginal * potential, torch.zeros_like(potential)).sum(-1)
        return expected

    f, g = result.row_potential, result.column_potential
    mass = (problem.scores / problem.epsilon + f.unsqueeze(-1) + g.unsqueeze(-2)).exp().sum((-2, -1))
    return mass - expected_potential(problem.rows, f) - expected_potential(problem.columns, g)


@given(problem=problems(), iterations=rounds)
def test_dual_value_bounds_every_feasible_plan_and_falls(problem: Problem, iterations: int) -> None:
    product = problem.rows.unsqueeze(-1) * problem.columns.unsqueeze(-2) / problem.rows.sum(-1)[..., None, None]
    value, next_value = dual(problem, problem.solve(iterations)), dual(problem, problem.solve(iterations + 1))
    slack = 1e-9 * (1 + 1 / problem.epsilon)
    assert bool((primal(problem, product) <= value + slack).all())
    assert bool((next_value <= value + slack).all())


@given(problem=problems(epsilons=(1.0, 0.15)))
def test_duality_gap_closes(problem: Problem) -> None:
    result = problem.solve(20_000, tolerance=1e-12)
    torch.testing.assert_close(primal(problem, result.plan), dual(problem, result), rtol=1e-9, atol=1e-9)


@given(problem=problems(), iterations=rounds, dtype=dtypes)
def test_plan_is_the_exponential_of_scores_and_potentials(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    result = problem.solve(iterations)
    exponent = problem.scores / problem.epsilon + result.row_potential.unsqueeze(-1) + result.column_potential.unsqueeze(-2)
    assert l1(exponent.exp(), result.plan) <= unit(dtype, problem)


# ---- 15, 16: restarts, tolerance, layouts ----


@given(problem=problems(), first=rounds, more=rounds)
def test_continuing_from_a_potential_counts_on(problem: Problem, first: int, more: int) -> None:
    start = problem.solve(first).column_potential
    resumed, straight = problem.solve(more, start=start), problem.solve(first + more)
    assert l1(resumed.plan, straight.plan) <= 1e-10
    assert resumed.iterations == more


@given(problem=problems(epsilons=(1.0, 0.15, 0.05), batches=((),)), tolerance=st.sampled_from((1e-2, 1e-5, 1e-9)))
def test_stops_at_the_first_round_within_the_tolerance(problem: Problem, tolerance: float) -> None:
    result = problem.solve(50_000, tolerance=tolerance)
    assert float(result.marginal_error) <= tolerance
    assert l1(result.plan, problem.solve(result.iterations).plan) <= 1e-10
    if result.iterations > 1:
        assert float(problem.solve(result.iterations - 1).marginal_error) > tolerance * (1 - 1e-6)


@given(problem=problems(epsilons=(1.0, 0.15, 0.05), batches=((4,), (2, 2))), tolerance=st.sampled_from((1e-2, 1e-5)))
def test_each_problem_of_a_batch_stops_by_itself(problem: Problem, tolerance: float) -> None:
    together = problem.solve(50_000, tolerance=tolerance)
    alone = [each.solve(50_000, tolerance=tolerance) for each in problem.each()]
    assert together.iterations == max(result.iterations for result in alone)
    plans = together.plan.reshape(-1, *together.plan.shape[-2:])
    for plan, result in zip(plans, alone, strict=True):
        assert l1(plan, result.plan) <= 1e-10


def test_iterations_bound_the_rounds_where_the_tolerance_is_out_of_reach() -> None:
    scores = make_scores("random", 8, 8, 0)
    result = sinkhorn_knopp(scores, 0.01, 7, tolerance=0.0, return_result=True)
    assert result.iterations == 7
    assert l1(result.plan, sinkhorn_knopp(scores, 0.01, 7)) == 0


@given(problem=problems(batches=((3,), (2, 2))), iterations=rounds, dtype=dtypes)
def test_a_batch_is_a_loop(problem: Problem, iterations: int, dtype: torch.dtype) -> None:
    problem = problem.to(dtype)
    together = problem.solve(iterations)
    alone = [each.solve(iterations) for each in problem.each()]
    bound = 2 * unit(dtype, problem)
    plans = together.plan.reshape(-1, *together.plan.shape[-2:])
    for index, result in enumerate(alone):
        assert l1(plans[index], result.plan) <= bound
        error = together.marginal_error.flatten()[index]
        assert abs(float(error - result.marginal_error)) <= bound * float(problem.rows.sum(-1).max())


@pytest.mark.parametrize("epsilon", [0.15, 0.001])
def test_memory_layout_changes_nothing(epsilon: float) -> None:
    scores = make_scores("random", 6, 8, 1)
    expected = sinkhorn_knopp(scores, epsilon)
    transposed = scores.T.contiguous().T
    strided = torch.stack((scores, 9 * scores), dim=-1)[..., 0]
    expanded = scores.expand(3, 6, 8)
    for layout in (transposed, strided):
        assert l1(sinkhorn_knopp(layout, epsilon), expected) <= 1e-12
    assert l1(sinkhorn_knopp(expanded, epsilon), expected.expand(3, 6, 8)) <= 1e-12
    marginal = torch.tensor(1 / 6, dtype=torch.float64).expand(6)
    assert l1(sinkhorn_knopp(scores, epsilon, row_marginal=marginal), expected) <= 1e-12


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 3, 3), (0, 0), (0, 4), (4, 0)])
@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_empty_scores_give_an_empty_plan(shape: tuple[int, ...], tolerance: float | None) -> None:
    result = sinkhorn_knopp(torch.zeros(shape), tolerance=tolerance, return_result=True)
    assert result.plan.shape == shape
    assert result.row_potential.shape == shape[:-1]
    assert result.column_potential.shape == (*shape[:-2], shape[-1])
    assert result.marginal_error.shape == shape[:-2]


def test_inputs_are_left_as_they_were() -> None:
    problem = Problem(make_scores("random", 5, 5, 0), 0.15, *torch.full((2, 5), 0.2, dtype=torch.float64))
    start = torch.zeros(5, dtype=torch.float64)
    tensors = (problem.scores, problem.rows, problem.columns, start)
    before = [tensor.clone() for tensor in tensors]
    plan = problem.solve(start=start).plan
    assert float(plan.sum()) == pytest.approx(1.0, rel=1e-12)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def test_results_repeat_to_the_bit() -> None:
    scores = make_scores("random", 300, 300, 0).float()
    assert all(torch.equal(sinkhorn_knopp(scores, eps), sinkhorn_knopp(scores, eps)) for eps in (0.15, 0.01))
