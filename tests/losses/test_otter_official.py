"""OTTERLoss.official(): the released arithmetic, and the second temperature."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from otter_losses import OTTERLoss
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import memory, reference
from otter_losses.ops.execution import Execution
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import relative, worst_error
from tests.helpers.losses import BLOCKS, DENSE, memories
from tests.helpers.otter import BOTH, bound, value_of


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
            limit = 1e-10 if dtype == torch.float64 else 5e-7 + 2e-7 / options.get("epsilon", 0.15)
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


def test_official_has_one_scope() -> None:
    with pytest.raises(ValueError, match=r"scope is 'local' and the loss official\(\)"):
        OTTERLoss.official(scope="local")
    with pytest.raises(ValueError, match=r"scope is 'near'; need 'global'.* or 'local'"):
        OTTERLoss(scope="near")  # type: ignore[arg-type]


@memories
@pytest.mark.parametrize("dtype", BOTH)
def test_official_with_a_diagonal_that_is_low_but_needed(dtype: torch.dtype, max_memory: int) -> None:
    """Three pairs, of which the diagonal must carry mass although it is lowered beyond what plain float32 numbers hold."""
    batch = make_batch(3, 8)
    options: dict[str, Any] = {"gamma_image": 0.01, "gamma_text": 0.01, "epsilon": 0.017, "iterations": 20}
    contrastive, distill = reference.released_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, **options)
    value = value_of(batch.to(dtype), OTTERLoss.official(max_memory=max_memory, **options))
    assert relative(value, contrastive + distill) <= bound(dtype, 0.017)


@pytest.mark.parametrize(("n", "alpha"), [(9, 1.0), (1, 0.5)])
def test_second_temperature_gets_a_gradient_of_zero_where_nothing_is_transported(n: int, alpha: float) -> None:
    """A parameter without a gradient is an error under DistributedDataParallel."""
    second = torch.tensor(20.0, requires_grad=True)
    torch.autograd.backward(value_of(make_batch(n, 8), OTTERLoss(alpha), distill_logit_scale=second))
    assert second.grad is not None
    assert abs(float(second.grad)) <= 1e-15


def matrices_saved(batch: Batch, loss: OTTERLoss, **call: Any) -> int:
    """N x N matrices kept for the backward."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value_of(batch, loss, **call)
    return sizes.count(len(batch.x) ** 2)


def test_second_temperature_keeps_its_third_matrix_within_max_memory() -> None:
    n = 40
    batch, matrix = make_batch(n, 8, dtype=torch.float32), 4 * n * n
    for max_memory, expected in ((3 * matrix, 3), (3 * matrix - 1, 2), (2 * matrix, 0)):
        assert matrices_saved(batch, OTTERLoss(max_memory=max_memory), distill_logit_scale=20.0) == expected


def test_second_temperature_keeps_its_third_matrix_within_the_default_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divided as a given one is: each share stays below what would keep a matrix more."""
    n = 40
    batch, matrix = make_batch(n, 8, dtype=torch.float32), 4 * n * n
    for budget, expected in ((3 * matrix, 3), (3 * matrix - 1, 2), (2 * matrix, 0)):
        monkeypatch.setattr(memory, "DEFAULT_BYTES", budget)
        assert matrices_saved(batch, OTTERLoss(), distill_logit_scale=20.0) == expected


def test_a_gpus_default_budget_is_divided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_device_budget", lambda device: 900)
    with FakeTensorMode():
        features = torch.empty(4, 2, device="cuda")
    third, rest = Execution.resolve("torch", None, WHOLE_BATCH, features).divided(3)
    assert (third.max_memory, rest.max_memory) == (300, 600)
