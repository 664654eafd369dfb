"""What is averaged: infinities, numbers far apart, tensors that share memory."""

import math

import pytest
import torch
from torch import Tensor, nn

from otter_losses import EMATeacher

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def holding(**buffers: Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    for name, buffer in buffers.items():
        model.register_buffer(name, buffer)
    return model


def half_teacher(model: nn.Module) -> EMATeacher:
    """Whose first update goes half the way."""
    return EMATeacher(model, decay=0.5, warmup=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [math.inf, -math.inf, math.nan])
def test_an_average_that_is_not_finite_takes_the_model_s_number(dtype: torch.dtype, start: float) -> None:
    """As an observer's extremes, which start infinite, do at the first batch."""
    model = holding(low=torch.tensor([start, 2.0, start]).to(dtype))
    teacher = half_teacher(model)
    teacher.update(model)
    torch.testing.assert_close(teacher.module.get_buffer("low"), model.get_buffer("low"), rtol=0, atol=0, equal_nan=True)
    model.get_buffer("low").copy_(torch.tensor([3.0, 4.0, start]))
    teacher.update(model)
    expected = torch.tensor([3.0, 3.0, start]).to(dtype)
    torch.testing.assert_close(teacher.module.get_buffer("low"), expected, rtol=0, atol=0, equal_nan=True)
    model.get_buffer("low").fill_(5.0)
    teacher.update(model)
    torch.testing.assert_close(teacher.module.get_buffer("low"), torch.tensor([4.0, 4.0, 5.0]).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_that_closes_takes_the_model_s_infinity(dtype: torch.dtype) -> None:
    model = holding(mask=torch.zeros(2, 2).to(dtype))
    teacher = half_teacher(model)
    model.get_buffer("mask")[0, 1] = -math.inf
    teacher.update(model)
    assert torch.equal(teacher.module.get_buffer("mask"), model.get_buffer("mask"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.999])
def test_numbers_whose_difference_overflows_are_averaged(dtype: torch.dtype, decay: float) -> None:
    largest = torch.finfo(dtype).max
    model = holding(mask=torch.tensor([-largest, largest, -largest], dtype=torch.float64).to(dtype))
    teacher = EMATeacher(model, decay, warmup=False)
    model.get_buffer("mask").copy_(torch.tensor([largest, -largest, -largest], dtype=torch.float64).to(dtype))
    teacher.update(model)
    share = torch.tensor([1 - 2 * decay, 2 * decay - 1, -1.0], dtype=torch.float64)
    actual = torch.real(teacher.module.get_buffer("mask")).double() / largest
    torch.testing.assert_close(actual, share, rtol=0, atol=float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_equal_stays_equal(dtype: torch.dtype) -> None:
    """To the last bit, however often it is averaged."""
    model = holding(b=torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype))
    teacher = EMATeacher(model)
    for _ in range(20):
        teacher.update(model)
    assert torch.equal(teacher.module.get_buffer("b"), model.get_buffer("b"))


def test_without_decay_the_average_is_the_model() -> None:
    model = holding(b=torch.tensor([1e20, 1.0, -3.3]))
    teacher = EMATeacher(model, decay=0.0, warmup=False)
    model.get_buffer("b").copy_(torch.tensor([0.1, 1e-7, 5e30]))
    teacher.update(model)
    assert torch.equal(teacher.module.get_buffer("b"), model.get_buffer("b"))


@pytest.mark.parametrize(
    "buffer",
    [
        torch.randn(3, 1).expand(3, 5),
        torch.ones(1).half().expand(7),
        torch.tensor(2.0).expand(2, 2),
        torch.arange(4).expand(3, 4),
        torch.eye(3).to_sparse(),
    ],
    ids=["rows", "half", "scalar", "integers", "sparse"],
)
def test_expanded_and_sparse_buffers_are_averaged_or_copied(buffer: Tensor) -> None:
    model = holding(b=buffer)
    teacher = half_teacher(model)
    assert torch.equal(teacher.module.get_buffer("b").to_dense(), buffer.to_dense())
    changed = buffer.clone() * 3
    model.register_buffer("b", changed)
    teacher.update(model)
    averaged = buffer.is_floating_point() and not buffer.is_sparse
    expected = 2 * buffer if averaged else changed
    assert torch.equal(teacher.module.get_buffer("b").to_dense(), expected.to_dense())


class Aliases(nn.Module):
    """A weight and a buffer under two names, and views of the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        whole = torch.zeros(6)
        for name, buffer in {"whole": whole, "again": whole, "part": whole[1:4], "table": whole.view(2, 3)}.items():
            self.register_buffer(name, buffer)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_shares_memory_is_averaged_once(given: bool, dtype: torch.dtype) -> None:
    model, second = Aliases().to(dtype), Aliases().to(dtype) if given else None
    teacher = EMATeacher(model, decay=0.75, warmup=False, module=second)
    before = model.first.weight.detach().clone()
    with torch.no_grad():
        model.first.weight.add_(1.0)
        for buffer in model.buffers():
            buffer.fill_(1.0)
    teacher.update(model)
    module: Aliases = teacher.module  # type: ignore[assignment]
    assert module.first.weight is module.second.weight
    expected = torch.lerp(before.float(), model.first.weight.detach().float(), 0.25).to(dtype)
    torch.testing.assert_close(module.first.weight.detach(), expected)
    for name in ("whole", "again", "part", "table"):
        assert torch.equal(module.get_buffer(name), torch.full_like(model.get_buffer(name), 0.25)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
@pytest.mark.parametrize("given", [False, True])
def test_a_buffer_whose_shape_changes_starts_anew(dtype: torch.dtype, given: bool) -> None:
    """As an observer's extremes of each channel do at the first batch, and a cache of positions at a longer text."""
    model = holding(low=torch.zeros(0, dtype=dtype))
    teacher = EMATeacher(model, decay=0.5, warmup=False, module=holding(low=torch.zeros(3, dtype=dtype)) if given else None)
    for shape in ((0,), (3,), (2, 4)):
        model.register_buffer("low", torch.full(shape, 4.0).to(dtype))
        teacher.update(model)
        assert torch.equal(teacher.module.get_buffer("low"), model.get_buffer("low"))
    model.get_buffer("low").fill_(8)
    teacher.update(model)
    expected = torch.full((2, 4), 6.0 if dtype.is_floating_point else 8.0).to(dtype)
    assert torch.equal(teacher.module.get_buffer("low"), expected)
    teacher.load_state_dict(teacher.state_dict())
    model.weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"model differs from the teacher at 'weight', shape \(2, 2\)"):
        teacher.update(model)
