"""torch.compile without a graph break gives what eager gives."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import OTTERLoss, sinkhorn_knopp
from otter_losses.losses.base import PairLoss
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import relative, worst_error
from tests.helpers.losses import MODULES, VARIANTS, memories
from tests.helpers.sinkhorn import make_scores


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


Features = tuple[Tensor, Tensor, Tensor]


def with_model(loss: PairLoss, **call: Any) -> Callable[[Batch], Tensor]:
    """The loss behind something that a model would compute."""

    def run(batch: Batch) -> Tensor:
        output = loss(2 * batch.x / 2, batch.y, 1.0 * batch.scale, **batch.teacher(), **call)
        value: Tensor = output
        if isinstance(output, dict):
            value = 2 * output["contrastive_loss"] + 3 * output["distill_loss"]
        return value

    return run


def both(loss: PairLoss, batch: Batch, **call: Any) -> list[tuple[Tensor, Features]]:
    """Value and gradients, compiled and eager."""
    eager = with_model(loss, **call)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    values = [compiled(batch), eager(batch)]
    return [(value, batch.gradients(value)) for value in values]


@pytest.mark.parametrize("name", [*MODULES, "otter, official"])
@memories
def test_losses_compile_whole(name: str, max_memory: int) -> None:
    compiled, eager = both(VARIANTS[name](max_memory=max_memory), make_batch(41, 16, dtype=torch.float32))
    assert worst_error(*compiled, *eager) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_and_alpha_per_pair_and_a_bias_compile_whole(dtype: torch.dtype) -> None:
    batch = make_batch(41, 16).to(dtype)
    call = {
        "alpha": torch.linspace(0, 1, 41),
        "logit_bias": torch.tensor([0.5]),
        "distill_logit_scale": torch.tensor(20.0),
        "output_dict": True,
    }
    (value, gradients), (expected, wanted) = both(OTTERLoss(), batch, **call)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype, torch.float32]
    assert relative(value, expected) <= 1e-5
    for actual, exact in zip(gradients, wanted, strict=True):
        assert relative(actual, exact) <= (1e-5 if dtype == torch.float32 else 2**-8)


def test_another_batch_size_compiles_too() -> None:
    eager = with_model(OTTERLoss())
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (41, 17, 64):
        batch = make_batch(n, 16, dtype=torch.float32)
        value, expected = compiled(batch), eager(batch)
        assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-5


# Dynamo itself instantiates autograd functions, which torch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("epsilon", [0.15, 0.001])
@pytest.mark.parametrize("implicit", [False, True])
def test_sinkhorn_compiles_whole(epsilon: float, implicit: bool) -> None:
    if implicit:
        epsilon = 0.15
    scores, weights = make_scores("random", 9, 7, 0), make_scores("random", 9, 7, 1)
    marginal = torch.linspace(0, 1, 9, dtype=torch.float64)
    marginal = marginal / marginal.sum()

    def run(scores: Tensor) -> Tensor:
        return sinkhorn_knopp(scores, epsilon, 8, row_marginal=marginal, implicit=implicit)

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        leaf = scores.clone().requires_grad_()
        plan = function(leaf)
        results.append((plan.detach(), torch.autograd.grad((weights * plan).sum(), leaf)[0]))
    assert relative(results[1][0], results[0][0]) <= 1e-10
    assert relative(results[1][1], results[0][1]) <= 1e-9
    assert relative(torch.compile(run, fullgraph=True, backend="aot_eager")(scores), run(scores)) <= 1e-10


def test_a_scale_that_changes_every_step_does_not_recompile_every_step() -> None:
    batch, loss = make_batch(9, 8, dtype=torch.float32), OTTERLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in range(12):
        assert relative(compiled(batch.x, batch.y, 14.0 + step), loss(batch.x, batch.y, 14.0 + step)) <= 1e-6
