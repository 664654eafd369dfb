"""otter_targets: the transported matches themselves."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from otter_losses import DistillationLoss, OTTERLoss
from otter_losses.functional import otter_targets
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, make_batch, make_features
from tests.helpers.checks import relative
from tests.helpers.decimals import decimal_targets
from tests.helpers.otter import bound


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
    options: dict[str, Any] = {"epsilon": epsilon, "gamma_image": gamma, "gamma_text": gamma}
    exact = reference.otter_targets(v.double(), t.double(), **options)
    rounding = torch.float64 if dtype == torch.float64 else torch.float32
    for plan, expected in zip(otter_targets(v, t, **options), exact, strict=True):
        assert plan.dtype == rounding
        assert bool((plan.diagonal() == 0).all())
        assert bool((plan >= 0).all())
        row_sums = torch.ones(n, dtype=rounding)
        torch.testing.assert_close(plan.sum(1), row_sums, rtol=bound(rounding, epsilon), atol=0)
        assert relative(plan, expected) <= 2 * bound(rounding, epsilon)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [1.0, 40.0])
def test_rows_sum_to_1_for_every_epsilon_and_norm(family: str, dtype: torch.dtype, norm: float) -> None:
    v, t = (norm * each for each in make_features(family, 33, 8, dtype=dtype))
    rounding = 1e-13 if dtype == torch.float64 else 2e-6
    for epsilon in (0.15, 1e-3, 1e-6, 1e-8, 1e-12, 1e-17, 1e-25):
        for plan in otter_targets(v, t, epsilon=epsilon):
            torch.testing.assert_close(plan.sum(1), torch.ones(33, dtype=plan.dtype), rtol=rounding, atol=0)


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


def test_a_teacher_that_leaves_the_type_is_refused() -> None:
    batch = make_batch(5, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"similarities over epsilon may reach .*; need at most .*Normalise"):
        otter_targets(1e6 * batch.v, 1e6 * batch.t, epsilon=1e-28)
    with pytest.raises(ValueError, match=r"similarities over epsilon may reach"):
        OTTERLoss(epsilon=1e-28)(batch.x, batch.y, 14.3, None, 1e6 * batch.v, 1e6 * batch.t)
    with pytest.raises(ValueError, match=r"similarities over epsilon may reach"):
        DistillationLoss()(batch.x, batch.y, 14.3, None, 1e14 * batch.v, 1e14 * batch.t, 1e15)


def test_an_annealed_epsilon_compiles_targets_a_few_times() -> None:
    torch.compiler.reset()
    batch, counter = make_batch(7, 8, dtype=torch.float32), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(otter_targets, fullgraph=True, backend=counter)
    for step in range(8):
        epsilon = 0.2 - 0.02 * step
        plans = [function(batch.v, batch.t, epsilon=epsilon) for function in (compiled, otter_targets)]
        for found, wanted in zip(*plans, strict=True):
            assert relative(found, wanted) <= 1e-5
    assert counter.frame_count <= 3
    torch.compiler.reset()
