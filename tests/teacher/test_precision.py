"""Averages in half precision, and teachers that are cast after they were built, loaded or nested."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from otter_losses import EMATeacher

HALVES = [torch.bfloat16, torch.float16]
TYPES = [torch.float32, torch.float64, *HALVES]
STEPS = 300


def weight_of(teacher: EMATeacher) -> torch.Tensor:
    return teacher.module.get_parameter("weight").detach()


def make(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 3).to(dtype)


def slow(model: nn.Module) -> EMATeacher:
    return EMATeacher(model, decay=0.999, warmup=False)


def check_moves(teacher: EMATeacher, model: nn.Linear, dtype: torch.dtype) -> None:
    """Steps far below the rounding of the weights add up."""
    start = weight_of(teacher).double().clone()
    with torch.no_grad():
        model.weight.add_(0.5 * model.weight.abs() + 0.05)
    for _ in range(STEPS):
        teacher.update(model)
    assert weight_of(teacher).dtype == dtype
    share = (weight_of(teacher).double() - start) / (model.weight.detach().double() - start)
    assert float(share.mean()) == pytest.approx(1 - 0.999**STEPS, abs=0.02)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_keeps_its_dtype_and_moves(dtype: torch.dtype) -> None:
    model = make(dtype)
    check_moves(slow(model), model, dtype)


CASTS: dict[str, Callable[[EMATeacher, torch.dtype], Any]] = {
    "to": lambda teacher, dtype: teacher.to(dtype),
    "parent": lambda teacher, dtype: nn.Sequential(nn.Identity(), nn.ModuleDict({"teacher": teacher})).to(dtype),
    "twice": lambda teacher, dtype: teacher.half().to(dtype),
    "module alone": lambda teacher, dtype: teacher.module.to(dtype),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=list(CASTS))
@pytest.mark.parametrize("before", TYPES)
@pytest.mark.parametrize("after", TYPES)
@pytest.mark.parametrize("model_too", [False, True])
def test_small_steps_are_not_lost_after_a_cast(
    cast: Callable[[EMATeacher, torch.dtype], Any], before: torch.dtype, after: torch.dtype, model_too: bool
) -> None:
    model = make(before)
    teacher = slow(model)
    cast(teacher, after)
    check_moves(teacher, model.to(after) if model_too else model, after)


def test_a_cast_rounds_no_average_away() -> None:
    teacher = EMATeacher(make())
    expected = weight_of(teacher).clone()
    teacher.half().bfloat16()
    assert torch.equal(weight_of(teacher), expected.bfloat16())
    assert torch.equal(weight_of(teacher.float()), expected)
    assert not list(teacher.exact.buffers())


@pytest.mark.parametrize("saved", [torch.float32, *HALVES])
@pytest.mark.parametrize("loaded", [torch.float32, *HALVES])
def test_states_are_loaded_in_another_precision(saved: torch.dtype, loaded: torch.dtype) -> None:
    model = make()
    source = EMATeacher(model, decay=0.5)
    with torch.no_grad():
        model.weight.mul_(1.234)
    source.update(model)
    expected = weight_of(source).clone()
    target = EMATeacher(make(seed=1), decay=0.5).to(loaded)
    parent = nn.ModuleDict({"teacher": target})
    state = nn.ModuleDict({"teacher": source.to(saved)}).state_dict()
    kept = set(state)
    parent.load_state_dict(state)
    assert set(state) == kept
    assert target.updates == 1
    assert torch.equal(weight_of(target), expected.to(loaded))
    assert torch.equal(weight_of(target.float()), expected)


def test_states_whose_float32_averages_are_counted_are_loaded() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.rounded = nn.Linear(2, 2), nn.Linear(2, 3).bfloat16()
            self.register_buffer("unsaved", torch.ones(2).bfloat16(), persistent=False)
            self.register_buffer("saved", torch.ones(4).bfloat16())

    teacher = EMATeacher(Mixed())
    state = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith("exact.")}
    names = ["rounded.weight", "rounded.bias", "unsaved", "saved"]
    module = dict(teacher.module.named_parameters()) | dict(teacher.module.named_buffers())
    exact = {name: module[name].float() * (1 + (index + 1) * 2**-12) for index, name in enumerate(names)}
    counted = {f"exact.{index}": exact[name] for index, name in enumerate(names)}
    for target in (EMATeacher(Mixed()), EMATeacher(Mixed()).float()):
        target.load_state_dict(state | counted)
        target.float()
        for name in ("rounded.weight", "rounded.bias", "saved"):
            assert torch.equal(target.module.state_dict()[name], exact[name]), name


def test_weights_set_from_outside_are_where_it_goes_on() -> None:
    """Not from the float32 average of those that were there."""
    model = make(torch.bfloat16)
    teacher = slow(model)
    teacher.module.load_state_dict(make(torch.bfloat16, seed=3).state_dict())
    expected = weight_of(teacher).clone()
    teacher.update(model)
    torch.testing.assert_close(weight_of(teacher), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("average", TYPES)
@pytest.mark.parametrize("current", TYPES)
def test_model_and_average_of_two_precisions(average: torch.dtype, current: torch.dtype) -> None:
    model = make(current)
    teacher = EMATeacher(model, decay=0.5, warmup=False, module=make(average, seed=4))
    start = model.weight.detach().double().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    teacher.update(model)
    assert weight_of(teacher).dtype == average
    middle = (start + model.weight.detach().double()) / 2
    torch.testing.assert_close(weight_of(teacher).double(), middle, rtol=4 * float(torch.finfo(average).eps), atol=1e-6)


def test_the_step_count_is_no_half_precision() -> None:
    teacher = EMATeacher(make()).type(torch.float16)
    teacher.average.n_averaged.fill_(5000)
    teacher.update(make())
    assert teacher.updates == 5000


def test_copies_of_a_cast_teacher_go_their_own_way() -> None:
    model = make()
    teacher = slow(model).bfloat16()
    second = copy.deepcopy(teacher)
    check_moves(teacher, model, torch.bfloat16)
    assert torch.equal(weight_of(second), make().weight.detach().bfloat16())
