"""OTTERLoss: values and gradients against the float64 reference, and what must follow from them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otter_losses import InfoNCELoss, LabelSmoothingLoss, OTTERLoss
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import relative, worst_error
from tests.helpers.losses import BLOCKS, DENSE, memories
from tests.helpers.otter import BOTH, bound, check, reference_of, value_of


@pytest.mark.parametrize("n", [1, 2, 3, 41, 127, 257])
@pytest.mark.parametrize("d", [8, 384, 640, 1152])
@pytest.mark.parametrize("epsilon", [0.15, 0.03, 0.005, 0.001])
def test_value_and_gradients_equal_the_reference_at_odd_sizes(n: int, d: int, epsilon: float) -> None:
    batch = make_batch(n, d, seed=n + d)
    check(batch, reference_of(batch, epsilon=epsilon), BOTH, epsilon)


@pytest.mark.parametrize("epsilon", [0.15, 0.01])
def test_value_and_gradients_equal_the_reference_over_several_row_blocks(epsilon: float) -> None:
    batch = make_batch(2050, 8, family="clustered")
    check(batch, reference_of(batch, epsilon=epsilon, iterations=2), (torch.float32,), epsilon, iterations=2)


@memories
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("norm", [1.0, 50.0])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-7, 1e-9, 1e-13, 1e-18, 1e-27])
def test_value_and_gradients_equal_the_reference_for_every_epsilon(
    epsilon: float, norm: float, dtype: torch.dtype, max_memory: int
) -> None:
    """Also where a rounding of ``similarity / epsilon`` is larger than a logarithm of the targets."""
    rounded = make_batch(37, 16, seed=3).to(dtype)
    batch = replace(rounded, v=norm * rounded.v, t=norm * rounded.t)
    value = value_of(batch, OTTERLoss(epsilon=epsilon, max_memory=max_memory))
    expected = reference_of(batch, epsilon=epsilon)
    error = worst_error(value, batch.gradients(value), *expected, float(batch.scale.detach()))
    assert error <= (1e-9 if dtype == torch.float64 else 2e-5)


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
    options: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations, "gamma_image": gammas[0], "gamma_text": gammas[1]}
    expected = reference_of(batch, alpha, **options)
    value = value_of(batch, OTTERLoss(alpha=alpha, max_memory=max_memory, **options))
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
