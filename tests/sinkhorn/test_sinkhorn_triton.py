"""sinkhorn_knopp's kernels give what plain torch gives: on a GPU where there is one, else in Triton's interpreter."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import SinkhornResult, sinkhorn_knopp
from otter_losses.ops.matching import pays
from tests.helpers.batches import DEVICE
from tests.helpers.checks import relative
from tests.helpers.sinkhorn import l1, make_scores

pytest.importorskip("triton", reason="triton is there on Linux only")
# The interpreter computes lanes beyond the matrix's edge too, and numpy tells of it.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]

SHAPES = [(1, 1), (1, 7), (9, 1), (41, 127), (3, 18, 9), (2, 2, 5, 66)]


def scores_of(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float32 scores, each problem of a batch of its own."""
    *batch, m, n = shape
    each = [make_scores("random", m, n, seed + index) for index in range(math.prod(batch))]
    return torch.stack(each).reshape(shape).float().to(DEVICE)


def marginals(shape: tuple[int, ...], zeros: bool = False) -> tuple[Tensor, Tensor]:
    """Rows for all problems, columns for each its own."""
    *batch, m, n = shape
    generator = torch.Generator().manual_seed(m + n)
    rows, columns = (0.1 + torch.rand(size, generator=generator) for size in ((m,), (*batch, n)))
    if zeros:
        rows[m // 2], columns[..., n // 3] = 0.0, 0.0
    return (rows / rows.sum()).to(DEVICE), (columns / columns.sum(-1, keepdim=True)).to(DEVICE)


def both(scores: Tensor, epsilon: float, iterations: int = 7, **options: Any) -> tuple[SinkhornResult, SinkhornResult]:
    """By kernels, and in float64 by torch on the same numbers."""
    exact: dict[str, Any] = {name: each.double() if isinstance(each, Tensor) else each for name, each in options.items()}
    found = sinkhorn_knopp(scores, epsilon, iterations, return_result=True, backend="triton", **options)
    return found, sinkhorn_knopp(scores.double(), epsilon, iterations, return_result=True, backend="torch", **exact)


def check(found: SinkhornResult, expected: SinkhornResult, bound: float) -> None:
    assert found.plan.dtype == torch.float32
    assert found.iterations == expected.iterations
    assert l1(found.plan, expected.plan) <= bound
    torch.testing.assert_close(found.plan.sum(-2).double(), expected.plan.sum(-2), rtol=1e-6, atol=1e-12)
    told = (found.plan.double().sum(-1) - expected.plan.sum(-1)).abs().sum(-1)
    assert bool(((found.marginal_error - expected.marginal_error).abs() <= told + 1e-6).all())
    for name in ("row_potential", "column_potential"):
        one, other = getattr(found, name), getattr(expected, name)
        assert torch.equal(one == -math.inf, other == -math.inf)
        one, other = one.double().nan_to_num(neginf=0.0), other.nan_to_num(neginf=0.0)
        assert float((one - other).abs().max()) <= bound * (1 + float(other.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epsilon", [1.0, 0.05, 0.005, 1e-7])
@pytest.mark.parametrize("zeros", [False, True])
def test_plans_equal_float64(shape: tuple[int, ...], epsilon: float, zeros: bool) -> None:
    if zeros and min(shape[-2:]) == 1:
        pytest.skip("leaves no mass")
    rows, columns = marginals(shape, zeros)
    check(*both(scores_of(shape), epsilon, row_marginal=rows, column_marginal=columns), bound=2e-6)
    check(*both(scores_of(shape, 50), epsilon), bound=2e-6)


@pytest.mark.parametrize("epsilon", [1e30, 0.15, 1e-4, 1e-8, 1e-16, 1e-27])
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_every_epsilon_and_forbidden_pairs(epsilon: float, size: float) -> None:
    scores = size * scores_of((23, 17), 4)
    scores[3, 5] = scores[7, 2] = scores[11] = -math.inf
    found, expected = both(scores, epsilon)
    assert l1(found.plan, expected.plan) <= 3e-5
    torch.testing.assert_close(found.plan.sum(0), torch.full((17,), 1 / 17, device=DEVICE), rtol=1e-6, atol=0)
    assert not found.plan[11].any()


@pytest.mark.parametrize("width", [65, 300])
def test_wider_tiles(width: int) -> None:
    for epsilon in (0.1, 0.01):
        check(*both(scores_of((19, width)), epsilon, 3), bound=2e-6)


@pytest.mark.parametrize("offset", [1e3, -1e6])
def test_scores_far_from_zero(offset: float) -> None:
    check(*both(offset + scores_of((9, 8)), 0.05), bound=2e-6 + 1e-7 * abs(offset))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [0.15, 0.004])
def test_half_precision_scores_are_read_as_they_are(dtype: torch.dtype, epsilon: float) -> None:
    half = scores_of((2, 21, 34)).to(dtype)
    plan = sinkhorn_knopp(half, epsilon, backend="triton")
    assert torch.equal(plan, sinkhorn_knopp(half.float(), epsilon, backend="triton"))
    assert l1(plan, sinkhorn_knopp(half.double(), epsilon)) <= 2e-6


@pytest.mark.parametrize("epsilon", [0.15, 0.001])
def test_memory_layout_changes_nothing(epsilon: float) -> None:
    scores = scores_of((6, 8), 1)
    expected = sinkhorn_knopp(scores, epsilon, backend="triton")
    transposed = scores.T.contiguous().T
    strided = torch.stack((scores, 9 * scores), dim=-1)[..., 0]
    for layout in (transposed, strided):
        assert torch.equal(sinkhorn_knopp(layout, epsilon, backend="triton"), expected)
    assert torch.equal(sinkhorn_knopp(scores.expand(3, 6, 8), epsilon, backend="triton"), expected.expand(3, 6, 8))
    marginal = torch.tensor(1 / 6, device=DEVICE).expand(6)
    assert torch.equal(sinkhorn_knopp(scores, epsilon, row_marginal=marginal, backend="triton"), expected)


@pytest.mark.parametrize("epsilon", [0.3, 0.02])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_each_problem_stops_by_itself(epsilon: float, tolerance: float) -> None:
    scores = torch.stack([size * make_scores("random", 13, 10, 3) for size in (0.0, 0.1, 1.0)]).float().to(DEVICE)
    found, expected = both(scores, epsilon, 60, tolerance=tolerance)
    check(found, expected, bound=4e-6)
    assert bool((found.marginal_error <= tolerance).all()) or found.iterations == 60
    alone = [sinkhorn_knopp(each, epsilon, 60, tolerance=tolerance, return_result=True, backend="triton") for each in scores]
    assert found.iterations == max(each.iterations for each in alone)
    assert len({each.iterations for each in alone}) > 1
    for plan, each in zip(found.plan, alone, strict=True):
        assert torch.equal(plan, each.plan)


@pytest.mark.parametrize("epsilon", [0.2, 1e-3, 1e-9])
def test_a_start_goes_on(epsilon: float) -> None:
    """As from the same start in float32: at a small epsilon one float does not hold it."""
    scores = scores_of((2, 12, 9), 6)
    start = sinkhorn_knopp(scores, epsilon, 3, return_result=True, backend="triton").column_potential
    start[0, 4] = -math.inf
    found, expected = (
        sinkhorn_knopp(scores, epsilon, 4, column_potential=start, return_result=True, backend=each)
        for each in ("triton", "torch")
    )
    assert l1(found.plan, expected.plan) <= 3e-6
    assert relative(found.marginal_error, expected.marginal_error) <= 3e-6


def test_columns_stay_exact_in_hundreds_of_rounds() -> None:
    """Of a problem without a solution, whose potentials diverge."""
    scores = torch.full((4, 4), -math.inf)
    scores[0], scores[:, 0] = 0.3, 0.1
    plan = sinkhorn_knopp(scores.to(DEVICE), 0.01, 250, backend="triton")
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 0.25, device=DEVICE), rtol=1e-6, atol=0)


@pytest.mark.parametrize("place", [(0, 0), (5, 3)])
@pytest.mark.parametrize("epsilon", [0.2, 0.001])
def test_a_nan_that_comes_in_comes_out(monkeypatch: pytest.MonkeyPatch, place: tuple[int, int], epsilon: float) -> None:
    monkeypatch.setattr("otter_losses.checks.check_scores", lambda scores, epsilon: None)
    scores = scores_of((2, 6, 4))
    scores[1][place] = math.nan
    plan = sinkhorn_knopp(scores, epsilon, backend="triton")
    assert bool(plan[1].isnan().all())
    assert not plan[0].isnan().any()


def gradients(backend: str, dtype: torch.dtype, epsilon: float, given: list[Tensor], **options: Any) -> list[Tensor]:
    scores, rows, columns, start = (each.detach().to(dtype).requires_grad_() for each in given)
    result = sinkhorn_knopp(
        scores,
        epsilon,
        row_marginal=rows,
        column_marginal=columns,
        column_potential=start if options.pop("started") else None,
        return_result=True,
        backend=backend,
        **options,
    )
    value = torch.zeros((), dtype=dtype, device=DEVICE)
    for seed, part in enumerate((result.plan, result.row_potential, result.column_potential)):
        weights = torch.rand(part.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        value = value + (weights.to(part) * part.masked_fill(part == -torch.inf, 0.0)).sum()
    return list(torch.autograd.grad(value, (scores, rows, columns, start), materialize_grads=True))


@pytest.mark.parametrize("shape", [(1, 7), (18, 35), (3, 17, 9)])
@pytest.mark.parametrize("epsilon", [0.15, 0.01, 1e-6])
@pytest.mark.parametrize("options", [{"iterations": 1}, {"iterations": 5}, {"iterations": 15, "tolerance": 3e-2}])
@pytest.mark.parametrize("started", [False, True])
def test_gradients_equal_float64(shape: tuple[int, ...], epsilon: float, options: dict[str, Any], started: bool) -> None:
    scores, (rows, columns) = scores_of(shape), marginals(shape, zeros=shape[-2] > 1)
    if len(shape) == 3:
        scores[0] *= 0.01
        scores[1, 4, 2] = -math.inf
    given = [scores, rows, columns, torch.linspace(-1, 1, shape[-1], device=DEVICE)]
    found = gradients("triton", torch.float32, epsilon, given, started=started, **options)
    expected = gradients("torch", torch.float64, epsilon, given, started=started, **options)
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other, floor=1 / epsilon) <= 2e-5


@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_gradients_of_any_layout(layout: str) -> None:
    scores = scores_of((2, 6, 8)).requires_grad_()
    weights = torch.ones((), device=DEVICE).expand(2, 6, 8) if layout == "expanded" else scores_of((2, 8, 6), 7).mT
    found, expected = (
        torch.autograd.grad(sinkhorn_knopp(scores, 0.1, backend=each), scores, weights)[0] for each in ("triton", "torch")
    )
    assert relative(found, expected, floor=1.0) <= 1e-5


def test_half_precision_scores_get_gradients_of_their_own_dtype() -> None:
    half = scores_of((9, 12)).bfloat16().requires_grad_()
    full = half.detach().double().requires_grad_()
    weights = scores_of((9, 12), 5)
    (found,) = torch.autograd.grad(sinkhorn_knopp(half, backend="triton"), half, weights)
    (expected,) = torch.autograd.grad(sinkhorn_knopp(full), full, weights.double())
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) <= 2**-8


def test_implicit_gradients_take_the_kernels_plan() -> None:
    scores, weights = scores_of((7, 6)).requires_grad_(), scores_of((7, 6), 9)
    found, expected = (
        torch.autograd.grad(sinkhorn_knopp(scores, 0.3, 100, tolerance=1e-6, implicit=True, backend=each), scores, weights)[0]
        for each in ("triton", "torch")
    )
    assert relative(found, expected) <= 1e-5


def test_results_repeat_to_the_bit() -> None:
    scores = scores_of((2, 70, 90))
    for epsilon in (0.15, 0.01):
        assert torch.equal(*(sinkhorn_knopp(scores, epsilon, backend="triton") for _ in range(2)))


# ---- what kernels are not for ----


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((256, 256), True), ((64, 1000), True), ((300, 300), False), ((16, 1024, 1024), True), ((2, 3, 700, 700), False)],
)
def test_auto_leaves_few_large_problems_to_the_whole_device(shape: tuple[int, ...], expected: bool) -> None:
    assert pays(torch.empty(shape, device="meta")) == expected


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(2, 1025), r"at most 2048 x 1024, but scores has shape \(2, 1025\)\. .*'auto'"),
        (torch.zeros(2049, 2), r"at most 2048 x 1024, but scores has shape \(2049, 2\)"),
        (torch.zeros(0, 4), r"at least one entry .* but scores has shape \(0, 4\)"),
        (torch.zeros(2, 2, dtype=torch.float64), r"computes in float32, but the scores are torch\.float64"),
    ],
)
def test_what_they_do_not_take_is_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        sinkhorn_knopp(scores.to(DEVICE), backend="triton")
    assert sinkhorn_knopp(scores.to(DEVICE)).shape == scores.shape


def test_transforms_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"takes no part in tracing .*'auto', which takes plain torch there"):
        torch.vmap(lambda scores: sinkhorn_knopp(scores, backend="triton"))(scores_of((3, 4, 5)))


def test_there_is_no_cuda_source_for_it() -> None:
    with pytest.raises(RuntimeError, match=r"ships no cuda kernels for it\. Use 'auto' or 'torch' or 'triton'"):
        sinkhorn_knopp(torch.zeros(2, 2), backend="cuda")
