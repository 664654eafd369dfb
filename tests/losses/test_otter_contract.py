"""OTTERLoss as autograd, autocast and a training loop meet it: precision, graphs, signatures, memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from otter_losses import OTTERLoss
from otter_losses.functional import otter_loss, otter_targets
from otter_losses.ops import reference
from tests.helpers.batches import Batch, make_batch, make_features
from tests.helpers.checks import check_autocast, relative
from tests.helpers.losses import BLOCKS, DENSE, Build, memories
from tests.helpers.otter import bound, reference_of, value_of

# ---- precision of the inputs ----


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
@pytest.mark.parametrize("epsilon", [0.15, 0.01])
@memories
def test_half_precision_features_give_the_loss_of_those_numbers(
    dtype: torch.dtype, rounding: float, epsilon: float, max_memory: int
) -> None:
    """Against float64 on the same rounded features; beyond that only the gradient's own rounding is allowed."""
    batch = make_batch(127, 64).to(dtype)
    expected, wanted = reference_of(batch, epsilon=epsilon)
    loss = OTTERLoss(epsilon=epsilon, max_memory=max_memory)
    value = value_of(batch, loss)
    gradients = batch.gradients(value)
    assert value.dtype == torch.float32
    assert gradients[0].dtype == gradients[1].dtype == dtype
    assert relative(value, expected) <= bound(torch.float32, epsilon)
    for actual, exact in zip(gradients[:2], wanted[:2], strict=True):
        assert relative(actual, exact) <= rounding
    assert relative(gradients[2], wanted[2]) <= bound(torch.float32, epsilon)
    full = batch.to(torch.float32)
    unrounded = full.gradients(value_of(full, loss))
    for actual, before in zip(gradients[:2], unrounded[:2], strict=True):
        assert relative(before, wanted[0] if actual is gradients[0] else wanted[1]) <= 1e-4
        assert torch.equal(actual, before.to(dtype))


@memories
def test_modalities_and_teacher_may_differ_in_dtype(max_memory: int) -> None:
    batch = make_batch(41, 16)
    mixed = Batch(batch.x.detach().float().requires_grad_(), batch.to(torch.bfloat16).y, batch.scale, batch.v.half(), batch.t)
    expected, wanted = reference_of(mixed)
    value = value_of(mixed, OTTERLoss(max_memory=max_memory))
    gradients = mixed.gradients(value)
    assert [each.dtype for each in gradients[:2]] == [torch.float32, torch.bfloat16]
    assert relative(value, expected) <= 1e-5
    assert relative(gradients[0], wanted[0]) <= 1e-4
    assert relative(gradients[1], wanted[1]) <= 2**-8


@memories
@pytest.mark.parametrize("build", [OTTERLoss, partial(OTTERLoss, epsilon=0.01), OTTERLoss.official])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_autocast_rounds_what_float32_products_take(dtype: torch.dtype, build: Build, max_memory: int) -> None:
    loss = build(max_memory=max_memory)
    check_autocast(make_batch(127, 64).to(dtype), lambda batch: value_of(batch, loss))


@memories
def test_autocast_rounds_the_students_own_targets_and_each_pairs_loss(max_memory: int) -> None:
    loss = OTTERLoss(max_memory=max_memory, reduction="none")
    alpha = torch.linspace(0, 1, 41)

    def evaluate(batch: Batch) -> Tensor:
        losses = loss(batch.x, batch.y, batch.scale, alpha=alpha, distill_logit_scale=20.0)
        assert isinstance(losses, Tensor)
        return losses.square().sum()

    check_autocast(make_batch(41, 16, dtype=torch.float32), evaluate)


@pytest.mark.parametrize("teacher", [torch.float16, torch.float32, torch.float64])
def test_autocast_rounds_a_teacher_of_float32_alone(teacher: torch.dtype) -> None:
    """Also of a student that comes in half precision."""
    batch = make_batch(41, 16)
    half = batch.to(torch.bfloat16)
    own, rounded = (batch.v.to(teacher), batch.t.to(teacher)), (half.v, half.t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = OTTERLoss()(half.x, half.y, 14.3, None, *own)
    as_they_are, as_rounded = (OTTERLoss()(half.x, half.y, 14.3, None, *features) for features in (own, rounded))
    assert torch.equal(value, as_rounded if teacher == torch.float32 else as_they_are)
    assert not torch.equal(as_they_are, as_rounded)


def test_autocast_changes_no_targets() -> None:
    v, t = make_features("random", 41, 16, dtype=torch.float32)
    plain = otter_targets(v, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(otter_targets(v, t), plain, strict=True))


# ---- autograd's contract ----


@memories
@pytest.mark.parametrize("epsilon", [0.15, 0.005])
def test_results_repeat_to_the_bit(epsilon: float, max_memory: int) -> None:
    def run() -> tuple[Tensor, ...]:
        batch = make_batch(257, 64, dtype=torch.float32)
        value = value_of(batch, OTTERLoss(epsilon=epsilon, max_memory=max_memory))
        return (value.detach(), *batch.gradients(value))

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


@memories
@pytest.mark.parametrize("epsilon", [0.15, 0.005])
def test_backward_can_run_twice_on_a_retained_graph(epsilon: float, max_memory: int) -> None:
    batch = make_batch(41, 16, dtype=torch.float32)
    value = value_of(batch, OTTERLoss(epsilon=epsilon, max_memory=max_memory))
    torch.autograd.backward(value, retain_graph=True)
    assert batch.x.grad is not None
    first = batch.x.grad.clone()
    torch.autograd.backward(value)
    assert torch.equal(batch.x.grad, 2 * first)


@memories
@pytest.mark.parametrize("factor", [0.0, -1.0, 1024.0, 65536.0])
def test_gradients_are_proportional_to_the_incoming_one(factor: float, max_memory: int) -> None:
    """As under GradScaler."""
    batch = make_batch(41, 16)
    expected = value_of(batch, OTTERLoss(max_memory=max_memory))
    value = factor * value_of(batch, OTTERLoss(max_memory=max_memory))
    wanted = tuple(factor * gradient for gradient in batch.gradients(expected))
    for actual, exact in zip(batch.gradients(value), wanted, strict=True):
        assert relative(actual, exact) <= 1e-12


@memories
@pytest.mark.parametrize("factor", [2.0**16, 2.0**30])
def test_gradients_of_a_scaled_loss_stay_in_range(factor: float, max_memory: int) -> None:
    """Opposite features and logits as far apart as plain numbers allow, in float32."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    v = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.01, 0.0]], dtype=torch.float64), dim=1)
    batch = Batch(x.requires_grad_(), y.requires_grad_(), torch.tensor(40.0, dtype=torch.float64, requires_grad=True), v, v)
    for epsilon in (0.0751, 0.15):
        exact = batch.gradients(value_of(batch, OTTERLoss(epsilon=epsilon)))
        single = batch.to(torch.float32)
        actual = single.gradients(factor * value_of(single, OTTERLoss(epsilon=epsilon, max_memory=max_memory)))
        for got, wanted in zip(actual, exact, strict=True):
            assert relative(got / factor, wanted) <= 1e-5


@memories
def test_far_apart_logits_are_not_held_as_plain_numbers(max_memory: int) -> None:
    x, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for scale in (70.0, -70.0):
        expected = F.cross_entropy(scale * x @ y.T, torch.arange(2)) + F.cross_entropy(scale * y @ x.T, torch.arange(2))
        assert relative(OTTERLoss(alpha=1.0, max_memory=max_memory)(x, y, scale), expected / 2) <= 1e-6


@memories
@pytest.mark.parametrize("frozen", ["x", "y", "scale", "x and scale", "y and scale"])
def test_a_frozen_input_changes_no_other_gradient(frozen: str, max_memory: int) -> None:
    batch = make_batch(41, 16)
    _, wanted = reference_of(batch)
    leaves = {"x": batch.x, "y": batch.y, "scale": batch.scale}
    for name in frozen.split(" and "):
        leaves[name] = leaves[name].detach()
    value = OTTERLoss(max_memory=max_memory)(leaves["x"], leaves["y"], leaves["scale"], **batch.teacher())
    value.backward()
    for name, exact in zip(("x", "y", "scale"), wanted, strict=True):
        if name in frozen.split(" and "):
            assert leaves[name].grad is None
        else:
            gradient = leaves[name].grad
            assert gradient is not None
            assert relative(gradient, exact) <= 1e-10


@memories
def test_gradient_reaches_the_one_micro_batch_that_has_it(max_memory: int) -> None:
    """Accumulation as open_clip does it: features of the other micro-batches are cached without a graph."""
    batch = make_batch(12, 16)
    _, wanted = reference_of(batch)
    fresh_x, fresh_y = batch.x.detach()[4:8].requires_grad_(), batch.y.detach()[4:8].requires_grad_()
    x = torch.cat((batch.x.detach()[:4], fresh_x, batch.x.detach()[8:]))
    y = torch.cat((batch.y.detach()[:4], fresh_y, batch.y.detach()[8:]))
    OTTERLoss(max_memory=max_memory)(x, y, batch.scale, **batch.teacher()).backward()
    assert fresh_x.grad is not None
    assert fresh_y.grad is not None
    assert relative(fresh_x.grad, wanted[0][4:8]) <= 1e-10
    assert relative(fresh_y.grad, wanted[1][4:8]) <= 1e-10


@memories
def test_no_gradient_flows_to_the_teacher(max_memory: int) -> None:
    batch = make_batch(9, 16)
    v, t = batch.v.requires_grad_(), batch.t.requires_grad_()
    torch.autograd.backward(value_of(batch, OTTERLoss(max_memory=max_memory)))
    assert v.grad is None
    assert t.grad is None
    assert batch.x.grad is not None


@memories
def test_without_gradients_only_the_value_comes(max_memory: int) -> None:
    batch = make_batch(41, 16)
    loss = OTTERLoss(max_memory=max_memory)
    expected = value_of(batch, loss)
    with torch.no_grad():
        value = value_of(batch, loss)
    with torch.inference_mode():
        inferred = value_of(batch, loss)
    assert not value.requires_grad
    assert torch.equal(value, expected)
    assert torch.equal(inferred, expected.detach())


@memories
def test_inputs_are_left_as_they_were(max_memory: int) -> None:
    batch = make_batch(41, 16, dtype=torch.float32)
    tensors = (batch.x, batch.y, batch.scale, batch.v, batch.t)
    before = [tensor.detach().clone() for tensor in tensors]
    torch.autograd.backward(value_of(batch, OTTERLoss(max_memory=max_memory)))
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def forward_mode(function: Callable[[Tensor], Any], x: Tensor) -> None:
    with forward_ad.dual_level():
        function(forward_ad.make_dual(x, x))  # type: ignore[no-untyped-call]


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Any], Tensor], Any]] = {
    "jvp": lambda function, x: torch.func.jvp(function, (x,), (x,)),
    "grad": lambda function, x: torch.func.grad(function)(x),
    "vmap": lambda function, x: torch.func.vmap(function)(x[None]),
    "dual numbers": forward_mode,
}


# Forward mode itself imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_that_would_see_no_gradient_are_refused(transform: str) -> None:
    batch = make_batch(9, 16)

    def function(x: Tensor) -> Any:
        return OTTERLoss()(x, batch.y, 14.3)

    with pytest.raises(RuntimeError, match=r"image_features is inside a transform of torch\.func or forward-mode"):
        TRANSFORMS[transform](function, batch.x.detach())


def test_what_was_computed_under_inference_mode_may_teach() -> None:
    batch = make_batch(9, 16)
    expected = value_of(batch, OTTERLoss(), alpha=torch.linspace(0, 1, 9))
    wanted = batch.gradients(expected)
    with torch.inference_mode():
        v, t, alpha, y = batch.v.clone(), batch.t.clone(), torch.linspace(0, 1, 9), batch.y.detach().clone()
    cached = Batch(batch.x, batch.y, batch.scale, v, t)
    value = value_of(cached, OTTERLoss(), alpha=alpha)
    for actual, exact in zip(cached.gradients(value), wanted, strict=True):
        assert torch.equal(actual, exact)
    locked, plain = (torch.autograd.grad(OTTERLoss()(batch.x, text, 14.3), batch.x)[0] for text in (y, batch.y))
    assert torch.equal(locked, plain)


@memories
def test_second_derivatives_are_refused_by_name(max_memory: int) -> None:
    batch = make_batch(9, 16)
    value = value_of(batch, OTTERLoss(max_memory=max_memory))
    (gradient,) = torch.autograd.grad(value, batch.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.backward(gradient.sum())


@memories
@pytest.mark.parametrize("epsilon", [0.4, 0.001])
@pytest.mark.parametrize("official", [False, True])
def test_gradients_are_those_of_finite_differences(epsilon: float, official: bool, max_memory: int) -> None:
    if official:
        epsilon = 0.4
    batch = make_batch(5, 3, scale=2.0)
    bias = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    second = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    build: Callable[..., OTTERLoss] = OTTERLoss.official if official else OTTERLoss
    loss = build(epsilon=epsilon, max_memory=max_memory)

    def run(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, second: Tensor) -> Any:
        parts = loss(x, y, scale, bias, **batch.teacher(), alpha=alpha, distill_logit_scale=second, output_dict=True)
        return tuple(parts.values())

    assert torch.autograd.gradcheck(run, (batch.x, batch.y, batch.scale, bias, second))


# ---- module and function, memory ----


def test_function_and_module_are_one() -> None:
    batch = make_batch(9, 16)
    module = OTTERLoss(alpha=0.3, epsilon=0.2, iterations=3, gamma_image=0.5, gamma_text=2.0)
    value = otter_loss(
        batch.x,
        batch.y,
        batch.scale,
        dist_image_features=batch.v,
        dist_text_features=batch.t,
        alpha=0.3,
        epsilon=0.2,
        iterations=3,
        gamma_image=0.5,
        gamma_text=2.0,
    )
    assert isinstance(value, Tensor)
    assert torch.equal(value, value_of(batch, module))


def test_defaults_are_the_papers() -> None:
    batch = make_batch(9, 16)
    expected = reference.otter_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, 0.5, 0.15, 5, 1.0, 1.0)
    assert relative(value_of(batch, OTTERLoss()), expected) <= 1e-12


def test_positions_are_open_clips() -> None:
    batch = make_batch(9, 16)
    value = OTTERLoss()(batch.x, batch.y, batch.scale, None, batch.v, batch.t, batch.scale, torch.tensor(-10.0), False)
    assert torch.equal(value, value_of(batch, OTTERLoss()))


def peak_memory(pairs: int, epsilon: float, max_memory: int) -> float:
    """Most bytes that torch's allocator holds beyond the inputs of one forward and backward, in N x N float32 matrices."""
    loss = OTTERLoss(epsilon=epsilon, iterations=1, max_memory=max_memory)
    x, y = (torch.nn.functional.normalize(torch.randn(pairs, 32), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(x, y, scale).backward()
    recorded: Any = profile.profiler
    held = most = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert held == 4 * (2 * 32 * pairs + 1)  # what stays are the gradients, so nothing has escaped the count
    return most / (4 * pairs * pairs)


@pytest.mark.parametrize(("epsilon", "max_memory", "most"), [(0.15, DENSE, 2.5), (0.01, DENSE, 2.5), (0.15, BLOCKS, 0.5)])
def test_peak_memory_is_bounded(epsilon: float, max_memory: int, most: float) -> None:
    matrices = peak_memory(4096, epsilon, max_memory)
    assert matrices <= most
    assert max_memory == BLOCKS or matrices >= 1
