"""OTTERLoss, otter_loss and otter_targets: values and gradients against the float64 reference, and what must follow from them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, Batch, decimal_targets, make_batch, make_features, relative, worst_error
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import otter_losses
from otter_losses import InfoNCELoss, LabelSmoothingLoss, OTTERLoss
from otter_losses.functional import otter_loss, otter_targets
from otter_losses.ops import reference

DENSE, BLOCKS = 2 << 30, 0
memories = pytest.mark.parametrize("max_memory", [DENSE, BLOCKS], ids=["dense", "blocks"])

Expected = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]


def bound(dtype: torch.dtype, epsilon: float) -> float:
    return 1e-10 if dtype == torch.float64 else 4e-6 + 4e-7 / epsilon


def value_of(batch: Batch, loss: torch.nn.Module, **call: Any) -> Tensor:
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    assert isinstance(value, Tensor)
    return value


def reference_of(batch: Batch, alpha: Tensor | float = 0.5, **options: Any) -> Expected:
    exact = batch.to(torch.float64)
    if isinstance(alpha, Tensor):
        alpha = alpha.double()
    value = reference.otter_loss(exact.x, exact.y, exact.scale, exact.v, exact.t, alpha, **options)
    return value, exact.gradients(value)


def check(batch: Batch, expected: Expected, dtypes: tuple[torch.dtype, ...], epsilon: float, **options: Any) -> None:
    """The loss equals what is expected for each dtype, dense and in blocks."""
    call = {name: options.pop(name) for name in ("alpha",) if name in options}
    for dtype in dtypes:
        for max_memory in (DENSE, BLOCKS):
            own = batch.to(dtype)
            if isinstance(call.get("alpha"), Tensor):
                call["alpha"] = call["alpha"].to(dtype)
            value = value_of(own, OTTERLoss(epsilon=epsilon, max_memory=max_memory, **options), **call)
            assert value.dtype == dtype
            assert value.shape == ()
            assert worst_error(value, own.gradients(value), *expected, float(batch.scale.detach())) <= bound(dtype, epsilon)


BOTH = (torch.float64, torch.float32)


# ---- value and gradients ----


@pytest.mark.parametrize("n", [1, 2, 3, 41, 127, 257])
@pytest.mark.parametrize("d", [8, 384, 640])
@pytest.mark.parametrize("epsilon", [0.15, 0.03, 0.005, 0.001])
def test_value_and_gradients_equal_the_reference_at_odd_sizes(n: int, d: int, epsilon: float) -> None:
    batch = make_batch(n, d, seed=n + d)
    check(batch, reference_of(batch, epsilon=epsilon), BOTH, epsilon)


@pytest.mark.parametrize("epsilon", [0.15, 0.01])
def test_value_and_gradients_equal_the_reference_over_several_row_blocks(epsilon: float) -> None:
    batch = make_batch(2050, 8, family="clustered")
    check(batch, reference_of(batch, epsilon=epsilon, iterations=2), (torch.float32,), epsilon, iterations=2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [0.15, 0.03, 0.005, 0.001])
def test_value_and_gradients_equal_the_reference_on_hard_data(family: str, epsilon: float) -> None:
    batch = make_batch(41, 16, seed=1, family=family)
    check(batch, reference_of(batch, epsilon=epsilon), BOTH, epsilon)


@pytest.mark.parametrize(("gamma_image", "gamma_text"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
@pytest.mark.parametrize("epsilon", [0.15, 0.005])
@pytest.mark.parametrize("n", [2, 41])
def test_gammas_weigh_the_similarities_within_a_modality(gamma_image: float, gamma_text: float, epsilon: float, n: int) -> None:
    batch = make_batch(n, 16)
    gammas = {"gamma_image": gamma_image, "gamma_text": gamma_text}
    check(batch, reference_of(batch, epsilon=epsilon, **gammas), BOTH, epsilon, **gammas)


@pytest.mark.parametrize("iterations", [1, 2, 5, 30])
@pytest.mark.parametrize("epsilon", [0.15, 0.01])
def test_any_number_of_rounds_equals_the_reference(iterations: int, epsilon: float) -> None:
    batch = make_batch(41, 16, family="duplicated")
    check(batch, reference_of(batch, epsilon=epsilon, iterations=iterations), BOTH, epsilon, iterations=iterations)


@pytest.mark.parametrize("scale", [0.0, 1.0, 14.3, 100.0, -20.0])
def test_any_scale_equals_the_reference(scale: float) -> None:
    batch = make_batch(127, 24, scale=scale)
    check(batch, reference_of(batch), BOTH, 0.15)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_alpha_weighs_the_given_pairs(alpha: float) -> None:
    batch = make_batch(41, 16)
    check(batch, reference_of(batch, alpha), BOTH, 0.15, alpha=alpha)


@pytest.mark.parametrize("n", [1, 2, 3, 41])
def test_alpha_may_differ_from_pair_to_pair(n: int) -> None:
    batch = make_batch(n, 16)
    alpha = torch.linspace(0, 1, n).float()
    check(batch, reference_of(batch, alpha), BOTH, 0.15, alpha=alpha)


@memories
def test_alpha_per_pair_may_have_another_dtype_and_alpha_of_the_call_wins(max_memory: int) -> None:
    batch = make_batch(9, 16)
    trust = torch.tensor([0, 1, 0.5, 0.25, 1, 0, 0.75, 0.5, 1], dtype=torch.bfloat16)
    loss = OTTERLoss(alpha=0.9, max_memory=max_memory)
    value = value_of(batch, loss, alpha=trust)
    assert worst_error(value, batch.gradients(value), *reference_of(batch, trust)) <= 1e-10
    for alpha in (torch.tensor(0.2), torch.tensor([0.2]), 0.2):
        assert relative(value_of(batch, loss, alpha=alpha), value_of(batch, OTTERLoss(alpha=0.2))) <= 1e-7


@pytest.mark.parametrize("n", [1, 2, 41])
@pytest.mark.parametrize("dtype", BOTH)
@memories
def test_without_a_teacher_the_students_detached_features_teach(n: int, dtype: torch.dtype, max_memory: int) -> None:
    batch = make_batch(n, 16)
    own = Batch(batch.x, batch.y, batch.scale, batch.x.detach(), batch.y.detach())
    expected = reference_of(own)
    own = own.to(dtype)
    value = OTTERLoss(max_memory=max_memory)(own.x, own.y, own.scale)
    assert worst_error(value, own.gradients(value), *expected) <= bound(dtype, 0.15)


@given(
    n=st.integers(1, 12),
    d=st.integers(1, 9),
    family=st.sampled_from(FAMILIES),
    epsilon=st.sampled_from((2.0, 0.15, 0.04, 0.01, 0.001)),
    iterations=st.integers(1, 8),
    alpha=st.floats(0, 1),
    gammas=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    scale=st.floats(0.1, 100),
    max_memory=st.sampled_from((DENSE, BLOCKS, 600)),
    seed=st.integers(0, 999),
)
def test_any_settings_equal_the_reference(
    n: int,
    d: int,
    family: str,
    epsilon: float,
    iterations: int,
    alpha: float,
    gammas: tuple[float, float],
    scale: float,
    max_memory: int,
    seed: int,
) -> None:
    batch = make_batch(n, d, seed, scale, family)
    options = {"epsilon": epsilon, "iterations": iterations, "gamma_image": gammas[0], "gamma_text": gammas[1]}
    expected = reference_of(batch, alpha, **options)
    value = value_of(batch, OTTERLoss(alpha=alpha, max_memory=max_memory, **options))  # type: ignore[arg-type]
    assert worst_error(value, batch.gradients(value), *expected) <= 1e-10


@memories
@pytest.mark.parametrize("form", ["float", "0-D", "[1]", "float64", "int"])
def test_scale_may_come_in_any_form(form: str, max_memory: int) -> None:
    batch = make_batch(9, 16, scale=14.0, dtype=torch.float32)
    forms: dict[str, Tensor | float] = {
        "float": 14.0,
        "int": 14,
        "0-D": torch.tensor(14.0, requires_grad=True),
        "[1]": torch.tensor([14.0], requires_grad=True),
        "float64": torch.tensor(14.0, dtype=torch.float64, requires_grad=True),
    }
    scale = forms[form]
    loss = OTTERLoss(max_memory=max_memory)
    value = loss(batch.x, batch.y, scale, **batch.teacher())
    expected, gradients = reference_of(batch)
    assert value.dtype == torch.float32
    assert relative(value, expected) <= 5e-6
    if isinstance(scale, Tensor):
        (gradient,) = torch.autograd.grad(value, scale)
        assert gradient.dtype == scale.dtype
        assert gradient.shape == scale.shape
        assert relative(gradient.reshape(()), gradients[2]) <= 1e-5


@memories
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "offset"])
def test_memory_layout_changes_nothing(layout: str, max_memory: int) -> None:
    batch = make_batch(41, 16)
    if layout == "expanded":
        batch = Batch(batch.x, batch.y[:1].expand(41, 16).detach().requires_grad_(), batch.scale, batch.v, batch.t)

    def laid_out(tensor: Tensor) -> Tensor:
        if layout == "transposed":
            return tensor.T.contiguous().T
        if layout == "strided":
            return torch.stack((tensor, -tensor), dim=-1)[..., 0]
        if layout == "offset":
            return torch.cat((tensor, tensor))[41:]
        return tensor[:1].expand(41, 16) if tensor is batch.y else tensor

    expected = reference_of(batch)
    value = OTTERLoss(max_memory=max_memory)(
        laid_out(batch.x),
        laid_out(batch.y),
        batch.scale,
        dist_image_features=laid_out(batch.v),
        dist_text_features=laid_out(batch.t),
    )
    gradients = list(batch.gradients(value))
    wanted = list(expected[1])
    if layout == "expanded":  # all of the gradient arrives at the one row that was used
        gradients[1], wanted[1] = gradients[1].sum(0), wanted[1].sum(0)
    assert worst_error(value, gradients, expected[0], wanted) <= 1e-10


@memories
@pytest.mark.parametrize("epsilon", [0.15, 0.001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_unnormalised_features_stay_finite_and_right(max_memory: int, epsilon: float, dtype: torch.dtype) -> None:
    batch = make_batch(41, 16)
    large = Batch(10 * batch.x.detach(), 10 * batch.y.detach(), batch.scale, 10 * batch.v, 10 * batch.t).to(dtype)
    value = value_of(large, OTTERLoss(epsilon=epsilon, max_memory=max_memory))
    gradients = large.gradients(value)
    assert all(bool(torch.isfinite(each).all()) for each in (value, *gradients))
    expected, _ = reference_of(large, epsilon=epsilon)
    assert relative(value, expected) <= (1e-9 if dtype == torch.float64 else 2e-6 + 4e-5 / epsilon)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing_to_the_bit(dtype: torch.dtype, max_memory: int) -> None:
    batch = make_batch(127, 64).to(dtype)
    loss = OTTERLoss(max_memory=max_memory)
    plain = value_of(batch, loss)
    expected = batch.gradients(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = value_of(batch, loss)
        gradients = batch.gradients(value)
    assert torch.equal(value, plain)
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(gradients, expected, strict=True))


def test_autocast_changes_no_targets() -> None:
    v, t = make_features("random", 41, 16, dtype=torch.float32)
    plain = otter_targets(v, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(otter_targets(v, t), plain, strict=True))


# ---- parts ----


@memories
def test_parts_carry_their_weights_and_sum_to_the_value(max_memory: int) -> None:
    batch = make_batch(41, 16)
    loss = OTTERLoss(alpha=0.3, max_memory=max_memory)
    parts = loss(batch.x, batch.y, batch.scale, **batch.teacher(), output_dict=True)
    assert sorted(parts) == ["contrastive_loss", "distill_loss"]
    assert all(part.shape == () for part in parts.values())
    assert relative(parts["contrastive_loss"] + parts["distill_loss"], value_of(batch, loss)) <= 1e-14
    pairs_only, _ = reference_of(batch, 1.0)
    matches_only, _ = reference_of(batch, 0.0)
    assert relative(parts["contrastive_loss"], 0.3 * pairs_only) <= 1e-12
    assert relative(parts["distill_loss"], 0.7 * matches_only) <= 1e-12


@memories
@pytest.mark.parametrize("weights", [(3.0, -0.5), (0.0, 2.0), (2.0, 0.0)])
def test_parts_weighted_by_the_caller_have_exact_gradients(weights: tuple[float, float], max_memory: int) -> None:
    batch = make_batch(41, 16)
    parts = OTTERLoss(alpha=0.3, max_memory=max_memory)(batch.x, batch.y, batch.scale, **batch.teacher(), output_dict=True)
    value = weights[0] * parts["contrastive_loss"] + weights[1] * parts["distill_loss"]
    exact = batch.to(torch.float64)
    pairs_only, matches_only = (
        reference.otter_loss(exact.x, exact.y, exact.scale, exact.v, exact.t, alpha) for alpha in (1.0, 0.0)
    )
    expected = 0.3 * weights[0] * pairs_only + 0.7 * weights[1] * matches_only
    assert worst_error(value, batch.gradients(value), expected, exact.gradients(expected)) <= 1e-10


@memories
@pytest.mark.parametrize("part", ["contrastive_loss", "distill_loss"])
def test_one_part_alone_can_be_differentiated(part: str, max_memory: int) -> None:
    batch = make_batch(9, 16)
    parts = OTTERLoss(alpha=0.5, max_memory=max_memory)(batch.x, batch.y, batch.scale, **batch.teacher(), output_dict=True)
    value, gradients = reference_of(batch, 1.0 if part == "contrastive_loss" else 0.0)
    halved = tuple(gradient / 2 for gradient in gradients)
    assert worst_error(parts[part], batch.gradients(parts[part]), value / 2, halved) <= 1e-10


# ---- special cases ----


def open_clip_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    image_logits, text_logits = scale * x @ y.T, scale * y @ x.T
    if bias is not None:
        image_logits, text_logits = image_logits + bias, text_logits + bias
    labels = torch.arange(len(x))
    return (F.cross_entropy(image_logits, labels) + F.cross_entropy(text_logits, labels)) / 2


@memories
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n", [1, 2, 127])
def test_alpha_one_is_info_nce_as_open_clip_computes_it(n: int, biased: bool, max_memory: int) -> None:
    batch = make_batch(n, 16)
    bias = torch.tensor(-3.0, requires_grad=True) if biased else None
    expected = open_clip_loss(batch.x, batch.y, batch.scale, bias)
    wanted = batch.gradients(expected)
    values = [
        OTTERLoss(alpha=1, max_memory=max_memory)(batch.x, batch.y, batch.scale, bias),
        value_of(batch, OTTERLoss(max_memory=max_memory), alpha=torch.ones(n), logit_bias=bias),
        InfoNCELoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, bias),
    ]
    for value in values:
        if bias is not None:
            assert float(torch.autograd.grad(value, bias, retain_graph=True)[0]) == 0.0
        assert worst_error(value, batch.gradients(value), expected, wanted) <= 1e-10


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("n", [2, 41])
@memories
def test_huge_epsilon_is_label_smoothing(share: float, n: int, max_memory: int) -> None:
    batch = make_batch(n, 16)
    value = value_of(batch, OTTERLoss(alpha=1 - share, epsilon=1e9, max_memory=max_memory))
    expected = LabelSmoothingLoss(smoothing=share)(batch.x, batch.y, batch.scale)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-7


@memories
def test_order_of_the_pairs_changes_nothing(max_memory: int) -> None:
    batch = make_batch(41, 16, family="duplicated")
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    alpha = torch.linspace(0, 1, 41)
    shuffled = Batch(batch.x[order], batch.y[order], batch.scale, batch.v[order], batch.t[order]).to(torch.float64)
    loss = OTTERLoss(max_memory=max_memory)
    expected = value_of(batch, loss, alpha=alpha)
    value = value_of(shuffled, loss, alpha=alpha[order])
    x, y, scale = batch.gradients(expected)
    assert worst_error(value, shuffled.gradients(value), expected, (x[order], y[order], scale)) <= 1e-10


@memories
def test_swapping_modalities_swaps_the_gradients(max_memory: int) -> None:
    batch = make_batch(41, 16)
    swapped = Batch(batch.y, batch.x, batch.scale, batch.t, batch.v).to(torch.float64)
    expected = value_of(batch, OTTERLoss(gamma_image=0.3, gamma_text=1.7, max_memory=max_memory))
    value = value_of(swapped, OTTERLoss(gamma_image=1.7, gamma_text=0.3, max_memory=max_memory))
    x, y, scale = batch.gradients(expected)
    assert worst_error(value, swapped.gradients(value), expected, (y, x, scale)) <= 1e-10


@memories
def test_scaling_teacher_and_epsilon_together_changes_nothing(max_memory: int) -> None:
    batch = make_batch(41, 16)
    stretched = Batch(batch.x, batch.y, batch.scale, 2 * batch.v, 2 * batch.t)
    value = value_of(stretched, OTTERLoss(epsilon=0.6, max_memory=max_memory))
    assert relative(value, value_of(batch, OTTERLoss(epsilon=0.15, max_memory=max_memory))) <= 1e-12


def test_one_pair_costs_nothing_and_two_pairs_swap() -> None:
    one, two = make_batch(1, 8), make_batch(2, 8)
    assert float(value_of(one, OTTERLoss()).detach()) == pytest.approx(0.0, abs=1e-14)
    logits = float(two.scale.detach()) * two.x.detach() @ two.y.detach().T
    swapped = torch.tensor([1, 0])
    expected = (F.cross_entropy(logits, swapped) + F.cross_entropy(logits.T, swapped)) / 2
    for epsilon in (0.15, 0.001):
        assert relative(value_of(two, OTTERLoss(alpha=0, epsilon=epsilon)), expected) <= 1e-12


# ---- targets ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [0.15, 0.01])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_targets_equal_the_equations_in_sixty_digits(family: str, epsilon: float, gamma: float) -> None:
    v, t = make_features(family, 6, 4, seed=2)
    image_to_text, text_to_image = otter_targets(v, t, epsilon=epsilon, gamma_image=gamma, gamma_text=1.0)
    assert relative(image_to_text, decimal_targets(v, t, epsilon, 5, gamma, 1.0)) <= 1e-10
    assert relative(text_to_image, decimal_targets(t, v, epsilon, 5, 1.0, gamma)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 127])
@pytest.mark.parametrize("epsilon", [0.15, 0.001])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_targets_are_distributions_over_the_other_pairs(dtype: torch.dtype, n: int, epsilon: float, gamma: float) -> None:
    v, t = make_features("clustered", n, 8, dtype=dtype)
    options = {"epsilon": epsilon, "gamma_image": gamma, "gamma_text": gamma}
    exact = reference.otter_targets(v.double(), t.double(), **options)  # type: ignore[arg-type]
    rounding = torch.float64 if dtype == torch.float64 else torch.float32
    for plan, expected in zip(otter_targets(v, t, **options), exact, strict=True):  # type: ignore[arg-type]
        assert plan.dtype == rounding
        assert bool((plan.diagonal() == 0).all())
        assert bool((plan >= 0).all())
        row_sums = torch.ones(n, dtype=rounding)
        torch.testing.assert_close(plan.sum(1), row_sums, rtol=bound(rounding, epsilon), atol=0)
        assert relative(plan, expected) <= 2 * bound(rounding, epsilon)


def test_targets_of_swapped_modalities_are_swapped() -> None:
    v, t = make_features("random", 9, 8)
    image_to_text, text_to_image = otter_targets(v, t, gamma_image=0.4, gamma_text=1.3)
    back, forth = otter_targets(t, v, gamma_image=1.3, gamma_text=0.4)
    assert relative(forth, image_to_text) <= 1e-12
    assert relative(back, text_to_image) <= 1e-12


def test_targets_of_one_pair_and_of_two_are_known() -> None:
    v, t = make_features("random", 2, 8)
    for plan in otter_targets(v, t, gamma_image=0.0, gamma_text=0.0):
        torch.testing.assert_close(plan, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), rtol=1e-12, atol=0)
    for plan in otter_targets(v[:1], t[:1]):
        assert plan.tolist() == [[1.0]]


def test_targets_need_no_gradient() -> None:
    v, t = make_features("random", 9, 8)
    assert not any(plan.requires_grad for plan in otter_targets(v.requires_grad_(), t))


# ---- the released arithmetic ----


def check_official(batch: Batch, second: Tensor | None, **options: Any) -> None:
    for dtype in BOTH:
        for max_memory in (DENSE, BLOCKS):
            exact = batch.to(torch.float64)
            parts = reference.released_loss(
                exact.x,
                exact.y,
                exact.scale,
                exact.v,
                exact.t,
                distill_scale=None if second is None else float(second),
                **options,
            )
            own = batch.to(dtype)
            loss = OTTERLoss.official(max_memory=max_memory, **options)
            call = {} if second is None else {"distill_logit_scale": second.to(dtype)}
            actual = loss(own.x, own.y, own.scale, **own.teacher(), **call, output_dict=True)
            limit = bound(dtype, options.get("epsilon", 0.15))
            largest = max(float(batch.scale.detach()), float(second or 0.0))
            for name, part in zip(("contrastive_loss", "distill_loss"), parts, strict=True):
                assert relative(actual[name], part, floor=0.1 * largest) <= limit
            value, expected = value_of(own, loss, **call), parts[0] + parts[1]
            assert worst_error(value, own.gradients(value), expected, exact.gradients(expected), largest) <= limit


@pytest.mark.parametrize("n", [2, 3, 127])
@pytest.mark.parametrize("second", [None, 60.0])
def test_official_equals_the_released_arithmetic(n: int, second: float | None) -> None:
    check_official(make_batch(n, 16), None if second is None else torch.tensor(second))


@memories
@pytest.mark.parametrize("second", [None, 60.0])
def test_official_of_one_pair_is_zero_where_the_released_arithmetic_divides_by_it(second: float | None, max_memory: int) -> None:
    batch = make_batch(1, 16)
    value = value_of(batch, OTTERLoss.official(max_memory=max_memory), distill_logit_scale=second)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-13)
    assert all(float(gradient.abs().max()) <= 1e-12 for gradient in batch.gradients(value))


@pytest.mark.parametrize(("gamma_image", "gamma_text"), [(0.0, 0.0), (0.0, 1.0), (0.001, 0.0), (0.01, 0.02), (0.5, 2.0)])
@pytest.mark.parametrize("n", [2, 41])
def test_official_keeps_the_diagonal_where_the_gammas_fail_to_remove_it(gamma_image: float, gamma_text: float, n: int) -> None:
    check_official(make_batch(n, 16), None, gamma_image=gamma_image, gamma_text=gamma_text)


@pytest.mark.parametrize(("alpha", "epsilon", "iterations"), [(0.0, 0.15, 5), (1.0, 0.15, 5), (0.7, 0.05, 3), (0.5, 1.0, 1)])
def test_official_takes_the_same_options(alpha: float, epsilon: float, iterations: int) -> None:
    check_official(make_batch(41, 16), None, alpha=alpha, epsilon=epsilon, iterations=iterations)


@memories
@pytest.mark.parametrize("official", [False, True])
def test_second_temperature_has_its_own_gradient(official: bool, max_memory: int) -> None:
    batch = make_batch(41, 16)
    second = torch.tensor([30.0], dtype=torch.float64, requires_grad=True)
    loss = OTTERLoss.official(alpha=0.4, max_memory=max_memory) if official else OTTERLoss(alpha=0.4, max_memory=max_memory)
    value = value_of(batch, loss, distill_logit_scale=second)
    expected_second = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    if official:
        parts = reference.released_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, alpha=0.4, distill_scale=expected_second)
        expected = parts[0] + parts[1]
    else:
        pairs = reference.otter_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, 1.0)
        matches = reference.otter_loss(batch.x, batch.y, expected_second, batch.v, batch.t, 0.0)
        expected = 0.4 * pairs + 0.6 * matches
    *wanted, wanted_second = torch.autograd.grad(expected, (batch.x, batch.y, batch.scale, expected_second))
    *gradients, gradient_second = torch.autograd.grad(value, (batch.x, batch.y, batch.scale, second))
    assert worst_error(value, gradients, expected, wanted) <= 1e-10
    assert gradient_second.shape == (1,)
    assert relative(gradient_second.reshape(()), wanted_second) <= 1e-10


def test_official_is_one_process_only() -> None:
    with pytest.raises(ValueError, match=r"world_size is 2; official\(\) reproduces the released arithmetic of one process"):
        OTTERLoss.official(rank=0, world_size=2)


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


MEMORY_SCRIPT = """
import sys
import torch
from otter_losses import OTTERLoss

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

def now():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

torch.set_num_threads(1)
n, epsilon, max_memory = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
loss = OTTERLoss(epsilon=epsilon, iterations=1, max_memory=max_memory)
def step(n):
    x, y = (torch.nn.functional.normalize(torch.randn(n, 32), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    before = now()
    loss(x, y, scale).backward()
    return before
step(128)
before = step(n)
print((peak() - before) * 1024 / (4 * n * n))
"""


@pytest.mark.parametrize(("epsilon", "max_memory", "most"), [(0.15, DENSE, 3.0), (0.01, DENSE, 3.0), (0.15, BLOCKS, 1.0)])
def test_peak_memory_is_bounded(epsilon: float, max_memory: int, most: float) -> None:
    """Resident memory of a fresh process beyond its inputs, in N x N float32 matrices of 64 MiB, which go back to the system."""
    root = Path(otter_losses.__file__).parent.parent
    command = [sys.executable, "-c", MEMORY_SCRIPT, "4096", str(epsilon), str(max_memory)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    matrices = float(output.stdout)
    assert matrices <= most
    assert max_memory == BLOCKS or matrices >= 1
