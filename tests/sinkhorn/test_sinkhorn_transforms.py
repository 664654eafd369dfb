"""torch.func's transforms, and forward-mode derivatives, of sinkhorn_knopp."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import sinkhorn_knopp
from tests.helpers.checks import relative
from tests.helpers.sinkhorn import make_scores

SCORES = torch.stack([make_scores("random", 5, 4, seed) for seed in range(3)])
ROWS = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
ROWS = ROWS / ROWS.sum(1, keepdim=True)
WEIGHTS = make_scores("random", 5, 4, 9)


@pytest.mark.parametrize("epsilon", [0.5, 0.01, 1e-12])
@pytest.mark.parametrize("options", [{}, {"tolerance": 1e-3, "iterations": 60}, {"iterations": 200, "implicit": True}])
def test_vmap_gives_what_batch_dimensions_give(epsilon: float, options: dict[str, Any]) -> None:
    mapped = torch.vmap(lambda scores: sinkhorn_knopp(scores, epsilon, **options))(SCORES)
    assert relative(mapped, sinkhorn_knopp(SCORES, epsilon, **options)) <= 1e-10


MAPPED: dict[str, Callable[[], Tensor]] = {
    "scores and rows": lambda: torch.vmap(lambda s, a: sinkhorn_knopp(s, row_marginal=a))(SCORES, ROWS),
    "along another dimension": lambda: torch.vmap(lambda s, a: sinkhorn_knopp(s, row_marginal=a), (2, 1))(
        SCORES.permute(1, 2, 0), ROWS.T
    ),
    "twice": lambda: torch.vmap(torch.vmap(lambda s, a: sinkhorn_knopp(s, row_marginal=a)))(SCORES[None], ROWS[None])[0],
}


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_scores_and_marginals(name: str) -> None:
    assert relative(MAPPED[name](), sinkhorn_knopp(SCORES, row_marginal=ROWS)) <= 1e-12


def test_vmap_over_a_marginal_alone_and_over_starts() -> None:
    mapped = torch.vmap(lambda a: sinkhorn_knopp(SCORES[0], row_marginal=a))(ROWS)
    assert relative(mapped, sinkhorn_knopp(SCORES[:1].expand(3, 5, 4), row_marginal=ROWS)) <= 1e-12
    starts = sinkhorn_knopp(SCORES, iterations=3, return_result=True).column_potential
    mapped = torch.vmap(lambda v: sinkhorn_knopp(SCORES[0], iterations=2, column_potential=v))(starts)
    batch = sinkhorn_knopp(SCORES[:1].expand(3, 5, 4), iterations=2, column_potential=starts)
    assert relative(mapped, batch) <= 1e-10
    mapped = torch.vmap(lambda s, v: sinkhorn_knopp(s, iterations=2, column_potential=v))(SCORES, starts)
    assert relative(mapped, sinkhorn_knopp(SCORES, iterations=5)) <= 1e-10


@pytest.mark.parametrize("options", [{}, {"iterations": 400, "implicit": True}])
def test_gradients_per_problem(options: dict[str, Any]) -> None:
    def loss(scores: Tensor) -> Any:
        return (WEIGHTS * sinkhorn_knopp(scores, 0.4, **options)).sum()

    leaf = SCORES.clone().requires_grad_()
    (expected,) = torch.autograd.grad((WEIGHTS * sinkhorn_knopp(leaf, 0.4, **options)).sum(), leaf)
    assert relative(torch.vmap(torch.func.grad(loss))(SCORES), expected) <= 1e-9


# torch compiles its own formulas with what it deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("epsilon", [0.4, 0.02])
def test_forward_mode_gives_the_reverse_modes_jacobian(epsilon: float) -> None:
    def plan(scores: Tensor) -> Tensor:
        return sinkhorn_knopp(scores, epsilon)

    leaf = SCORES[0].clone().requires_grad_()
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in plan(leaf).flatten()]
    reverse = torch.stack(rows).view(5, 4, 5, 4)
    assert relative(torch.func.jacfwd(plan)(SCORES[0]), reverse) <= 1e-10
    assert relative(torch.func.jacrev(plan)(SCORES[0]), reverse) <= 1e-10
    tangent = torch.func.jvp(plan, (SCORES[0],), (WEIGHTS,))[1]
    assert relative(tangent, (reverse * WEIGHTS).sum((-2, -1))) <= 1e-10


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_implicit_derivative_has_no_forward_mode() -> None:
    with pytest.raises(RuntimeError, match="scores has a tangent of forward-mode differentiation"):
        torch.func.jvp(lambda scores: sinkhorn_knopp(scores, iterations=50, implicit=True), (SCORES[0],), (WEIGHTS,))
