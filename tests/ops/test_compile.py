"""torch.compile without a graph break gives what eager gives."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from otter_losses import DistillationLoss, LabelSmoothingLoss, OTTERLoss, sinkhorn_knopp
from otter_losses.losses.base import PairLoss
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import relative, worst_error
from tests.helpers.losses import MODULES, VARIANTS, Build, memories
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


@pytest.mark.parametrize("inside", [False, True], ids=["around the step", "within the step"])
@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_an_autocast_region_compiles_whole(name: str, inside: bool) -> None:
    """And is left again."""
    batch, loss = make_batch(41, 16, dtype=torch.float32), with_model(VARIANTS[name]())

    def step(batch: Batch, enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return loss(batch)

    compiled = torch.compile(step if inside else loss, fullgraph=True, backend="aot_eager")
    expected = {enabled: step(batch, enabled) for enabled in (False, True)}
    assert not torch.equal(expected[True], expected[False])
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled and not inside):
            value = compiled(batch, enabled) if inside else compiled(batch)
        wanted = batch.gradients(step(batch, enabled))
        assert worst_error(value, batch.gradients(value), expected[enabled], wanted) <= 1e-6


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


FEW = 3
"""Compilations: for the first value, for any, and one more for a special case."""

OPTIONS: dict[str, tuple[Build, str, float, float]] = {
    "alpha": (OTTERLoss, "alpha", 0.9, 0.2),
    "epsilon": (OTTERLoss, "epsilon", 0.5, 0.09),
    "a tiny epsilon": (OTTERLoss, "epsilon", 1e-3, 1e-6),
    "gamma_image": (OTTERLoss, "gamma_image", 0.2, 1.7),
    "gamma_text of the released code": (OTTERLoss.official, "gamma_text", 1.5, 0.3),
    "smoothing": (LabelSmoothingLoss, "smoothing", 0.3, 0.05),
    "smoothing as torch's": (partial(LabelSmoothingLoss, convention="torch"), "smoothing", 0.1, 0.4),
    "distillation's epsilon": (partial(DistillationLoss, epsilon=1.0), "epsilon", 0.2, 0.09),
    "distillation's gamma": (partial(DistillationLoss, epsilon=0.2), "gamma_text", 0.1, 0.8),
}
"""A loss, the option to anneal, from where and to where."""


@pytest.mark.parametrize("name", OPTIONS)
def test_an_annealed_option_compiles_a_few_times(name: str) -> None:
    build, option, first, last = OPTIONS[name]
    batch, loss = make_batch(9, 8, dtype=torch.float32), build()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(12):
        setattr(loss, option, first + (last - first) * step / 11)
        value, expected = (each(batch.x, batch.y, 14.3, **batch.teacher()) for each in (compiled, loss))
        pairs = [torch.autograd.grad(each, (batch.x, batch.y)) for each in (value, expected)]
        assert max(relative(*each) for each in zip(*pairs, strict=True)) <= 1e-5
        assert relative(value, expected) <= 1e-6
    assert counter.frame_count <= FEW


@pytest.mark.parametrize("name", [*MODULES, "otter, official", "distillation, off the diagonal"])
def test_a_batch_that_varies_compiles_a_few_times(name: str) -> None:
    loss = VARIANTS[name]()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (17, 5, 64, 6, 23, 9, 2, 31):
        batch = make_batch(n, 8, dtype=torch.float32)
        value, expected = (each(batch.x, batch.y, batch.scale, **batch.teacher()) for each in (compiled, loss))
        assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-5
    assert counter.frame_count <= FEW


def test_sinkhorn_of_any_size_and_epsilon_compiles_a_few_times() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sinkhorn_knopp, fullgraph=True, backend=counter)
    for step in range(10):
        scores, epsilon = make_scores("random", 7 + step, 20 - step, step), 0.02 + 0.01 * step
        assert relative(compiled(scores, epsilon), sinkhorn_knopp(scores, epsilon)) <= 1e-10
    assert counter.frame_count <= FEW


class Step(nn.Module):
    """What is exported: a loss with a teacher of its own width."""

    def __init__(self, loss: PairLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor, scale: Tensor, v: Tensor, t: Tensor) -> Any:
        return self.loss(x, y, scale, dist_image_features=v, dist_text_features=t)


@pytest.mark.parametrize("name", [*MODULES, "otter, official", "distillation, off the diagonal", "otter, logarithms"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bounds", [{}, {"min": 1, "max": 4096}], ids=["any size", "a size in bounds"])
def test_losses_export_with_a_dynamic_batch(name: str, strict: bool, bounds: dict[str, int]) -> None:
    pairs = torch.export.Dim("pairs", **bounds)
    example, step = make_batch(7, 8, dtype=torch.float32), Step(VARIANTS[name]())
    arguments = tuple(each.detach() for each in (example.x, example.y, example.scale, example.v, example.t))
    rows = {0: pairs}
    program = torch.export.export(step, arguments, dynamic_shapes=(rows, rows, None, rows, rows), strict=strict).module()
    for n in (1, 2, 7, 41):
        batch = make_batch(n, 8, dtype=torch.float32)
        call = (batch.x, batch.y, batch.scale, batch.v, batch.t)
        assert relative(program(*call), step(*call), floor=1.0) <= 1e-6
