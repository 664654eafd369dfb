"""Following an optimizer: once after each whole step, whatever wraps it; and what cannot be followed."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from otter_losses import EMATeacher


def make() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def shrink(optimizer: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)


class Wrapper:
    """That is no Optimizer, and leaves other weights than the inner step."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self, closure: Any = None) -> Any:
        result = self.inner.step(closure)
        shrink(self.leaf)
        return result

    @property
    def leaf(self) -> Any:
        return self.inner.leaf if isinstance(self.inner, (Wrapper, Unhooked)) else self.inner


class Unhooked(Optimizer):
    """That never ran Optimizer.__init__, as many wrappers."""

    def __init__(self, inner: Any) -> None:
        self.parts = {"inner": [inner]}
        self.leaf = getattr(inner, "leaf", inner)
        self.param_groups, self.state, self.defaults = self.leaf.param_groups, self.leaf.state, self.leaf.defaults

    def step(self, closure: Any = None) -> Any:
        result = self.parts["inner"][0].step(closure)
        shrink(self)
        return result


class Delegating(Unhooked):
    """That hands its attributes on."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("parts", "leaf"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.leaf, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "leaf"), name)


class Aside(Unhooked):
    """That leaves the inner step aside."""

    def step(self, closure: Any = None) -> Any:
        result = closure() if closure else None
        shrink(self)
        return result


class Hidden(Unhooked):
    """That leaves the inner step aside and writes to the data, which autograd does not count."""

    def step(self, closure: Any = None) -> Any:
        result = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.9)
        return result


class Projected(SGD):
    """Whose hooks torch runs twice: in the parent's step and after its own."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        shrink(self)
        return result


class TwoStep(Optimizer):
    """With hooks of its own, and steps that go by them."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = SGD(self.param_groups, lr=0.1)

    def step(self, closure: Any = None) -> Any:
        result = self.base.step(closure)
        shrink(self)
        return result


class Alone(Optimizer):
    """With neither hooks nor an inner optimizer."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups, self.state, self.defaults = [{"params": list(parameters), "lr": 0.1}], {}, {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        result = closure() if closure else None
        shrink(self)
        return result


def fused(parameters: Any) -> SGD:
    """Whose steps a gradient scaler skips from inside."""
    return SGD(parameters, lr=0.1, fused=True)


MAKES: dict[str, Callable[[Any], Any]] = {
    "torch's": lambda parameters: AdamW(parameters, lr=0.1),
    "wrapped": lambda parameters: Wrapper(SGD(parameters, lr=0.1)),
    "unhooked": lambda parameters: Unhooked(SGD(parameters, lr=0.1)),
    "wrapped, delegating": lambda parameters: Delegating(SGD(parameters, lr=0.1)),
    "wrapped twice": lambda parameters: Wrapper(Unhooked(AdamW(parameters, lr=0.1))),
    "unhooked twice": lambda parameters: Unhooked(Unhooked(SGD(parameters, lr=0.1))),
    "inner aside": lambda parameters: Aside(SGD(parameters, lr=0.1)),
    "inner aside, hidden": lambda parameters: Hidden(SGD(parameters, lr=0.1)),
    "subclass": lambda parameters: Projected(parameters, lr=0.1),
    "hooked wrapper": TwoStep,
    "alone": Alone,
}
GROUPED = {name: build for name, build in MAKES.items() if "wrapped" not in name}
"""Those with param_groups, which schedulers and gradient scalers want."""
every_kind = pytest.mark.parametrize("build", MAKES.values(), ids=list(MAKES))


@pytest.fixture(autouse=True)
def parent_has_hooks() -> None:
    """Torch hooks a class when its first optimizer is built, and a subclass's steps run a hooked parent's."""
    SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def step(model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


def weight_of(teacher: EMATeacher) -> Tensor:
    return teacher.module.get_parameter("weight")


@every_kind
def test_updates_once_after_each_whole_step(build: Callable[[Any], Any]) -> None:
    model = make()
    optimizer = build(model.parameters())
    teacher, by_hand = EMATeacher(model), EMATeacher(model)
    teacher.follow(model, optimizer)
    for count in range(1, 4):
        step(model, optimizer)
        by_hand.update(model)
        assert teacher.updates == count
        assert torch.equal(weight_of(teacher), weight_of(by_hand))


@every_kind
def test_a_closure_s_value_comes_back(build: Callable[[Any], Any]) -> None:
    model = make()
    optimizer = build(model.parameters())
    teacher = EMATeacher(model)
    teacher.follow(model, optimizer)

    def closure() -> Tensor:
        loss: Tensor = model(torch.ones(3, 4)).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    assert float(optimizer.step(closure)) > 0
    assert teacher.updates == 1


@every_kind
@pytest.mark.parametrize("first", [0, 1])
def test_each_handle_ends_its_own(build: Callable[[Any], Any], first: int) -> None:
    model = make()
    optimizer = build(model.parameters())
    teachers = [EMATeacher(model), EMATeacher(model)]
    handles = [teacher.follow(model, optimizer) for teacher in teachers]
    step(model, optimizer)
    handles[first].remove()
    step(model, optimizer)
    assert [teachers[first].updates, teachers[1 - first].updates] == [1, 2]
    with handles[1 - first]:
        step(model, optimizer)
    step(model, optimizer)
    assert [teachers[first].updates, teachers[1 - first].updates] == [1, 3]


@pytest.mark.parametrize("build", GROUPED.values(), ids=list(GROUPED))
@pytest.mark.parametrize("scheduled", ["before", "after"])
def test_a_scheduler_wraps_the_step_as_well(build: Callable[[Any], Any], scheduled: str) -> None:
    model = make()
    optimizer, teacher = build(model.parameters()), EMATeacher(model)
    if scheduled == "before":
        scheduler = StepLR(optimizer, 1)
    teacher.follow(model, optimizer)
    if scheduled == "after":
        scheduler = StepLR(optimizer, 1)
    for _ in range(3):
        step(model, optimizer)
        scheduler.step()
    assert teacher.updates == 3


@pytest.mark.parametrize("name", ["torch's", "wrapped", "subclass", "hooked wrapper"])
def test_copies_of_the_optimizer_are_not_followed(name: str) -> None:
    model = make()
    optimizer, teacher = MAKES[name](model.parameters()), EMATeacher(model)
    plain = set(vars(optimizer))
    teacher.follow(model, optimizer)
    assert set(vars(optimizer)) <= plain | {"step"}
    step(model, optimizer)
    for second in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        if name != "hooked wrapper":  # which torch copies without its inner one
            second.step()
    assert teacher.updates == 1
    step(model, optimizer)
    assert teacher.updates == 2


def test_a_step_that_fails_is_none() -> None:
    model = make()
    optimizer, teacher = Unhooked(SGD(model.parameters(), lr=0.1)), EMATeacher(model)
    teacher.follow(model, optimizer)

    def closure() -> Tensor:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        optimizer.step(closure)
    assert teacher.updates == 0
    step(model, optimizer)
    assert teacher.updates == 1


def test_follows_once_a_step_whatever_accumulates() -> None:
    model = make()
    optimizer = SGD(model.parameters(), lr=0.1)
    teacher, by_hand = EMATeacher(model), EMATeacher(model)
    teacher.follow(model, optimizer)
    for _ in range(3):
        for _ in range(4):
            model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        by_hand.update(model)
    assert teacher.updates == 3
    assert torch.equal(weight_of(teacher), weight_of(by_hand))


@pytest.mark.parametrize("build", [*GROUPED.values(), fused], ids=[*GROUPED, "fused"])
@pytest.mark.parametrize("wrapped", ["not", "before", "after"])
def test_a_step_that_a_scaler_skips_is_none(build: Callable[[Any], Any], wrapped: str) -> None:
    """Whether accelerate's wrapper is built before the optimizer is followed, after, or not at all."""
    model, scaler = make(), torch.amp.GradScaler("cpu")
    inner = build(model.parameters())
    teacher = EMATeacher(model)
    if wrapped != "before":
        teacher.follow(model, inner)
    Accelerator(cpu=True)
    outer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler) if wrapped != "not" else inner
    if wrapped == "before":
        teacher.follow(model, outer)
    for factor, updates in ((torch.inf, 0), (1.0, 1), (torch.inf, 1), (1.0, 2)):
        model.zero_grad()
        scaler.scale(factor * model(torch.ones(3, 4)).sum()).backward()
        if wrapped == "not":
            scaler.step(outer)
            scaler.update()
        else:
            outer.step()
        assert teacher.updates == updates


def test_a_wrapper_that_skips_the_inner_step_has_not_stepped() -> None:
    """As those do that hold float32 copies of half-precision weights, and see an overflow."""

    class Masters(Wrapper):
        overflow = False
        pairs: list[tuple[Tensor, Tensor]]

        def step(self, closure: Any = None) -> None:
            if not self.overflow:
                self.inner.step()
                with torch.no_grad():
                    for parameter, master in self.pairs:
                        parameter.data.copy_(master)

    model = make().bfloat16()
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimizer, teacher, by_hand = Masters(SGD(masters, lr=0.1)), EMATeacher(model), EMATeacher(model)
    optimizer.pairs = list(zip(model.parameters(), masters, strict=True))
    teacher.follow(model, optimizer)
    for optimizer.overflow in (True, False, True, False):
        for master in masters:
            master.grad = torch.ones_like(master)
        optimizer.step()
        if not optimizer.overflow:
            by_hand.update(model)
    assert teacher.updates == 2
    assert torch.equal(weight_of(teacher), weight_of(by_hand))


class Accumulating(Optimizer):
    """That steps every other time; what steps is in a plain object."""

    def __init__(self, inner: Any, others: tuple[Any, ...] = ()) -> None:
        self.holder = SimpleNamespace(inner=inner)
        self.others = SimpleNamespace(trainer=self, **{f"other{index}": other for index, other in enumerate(others)})
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self.calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return self.holder.inner.step(closure) if self.calls % 2 == 0 else None


def test_an_optimizer_in_a_plain_object_is_found() -> None:
    model, other = make(), make()
    foreign = SGD(other.parameters(), lr=0.1)
    optimizer, teacher = Accumulating(SGD(model.parameters(), lr=0.1), (foreign,)), EMATeacher(model)
    teacher.follow(model, optimizer)
    for count in range(1, 7):
        step(model, optimizer)
        step(other, foreign)
        assert teacher.updates == count // 2


def test_an_inner_step_between_steps_of_the_wrapper_s_own() -> None:
    """Which puts other tensors in place of the parameters' data."""

    class Alternating(Unhooked):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            if self.calls % 2:
                return self.leaf.step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter.data = parameter.data - 0.1 * parameter.grad

    model = make()
    optimizer, teacher = Alternating(SGD(model.parameters(), lr=0.1)), EMATeacher(model)
    teacher.follow(model, optimizer)
    for count in range(1, 5):
        step(model, optimizer)
        assert teacher.updates == count


@every_kind
def test_following_again_ends_the_first(build: Callable[[Any], Any]) -> None:
    """As in a cell of a notebook that is run twice."""
    model = make()
    optimizer, teacher = build(model.parameters()), EMATeacher(model)
    first = teacher.follow(model, optimizer)
    with pytest.raises(TypeError, match="optimizer is a NoneType"):
        teacher.follow(model, None)  # type: ignore[arg-type]
    step(model, optimizer)
    assert teacher.updates == 1
    second = teacher.follow(model, optimizer)
    step(model, optimizer)
    assert teacher.updates == 2
    first.remove()
    step(model, optimizer)
    assert teacher.updates == 3
    second.remove()
    step(model, optimizer)
    assert teacher.updates == 3


def test_a_teacher_follows_one_optimizer_and_its_copies_none() -> None:
    model = make()
    inner = SGD(model.parameters(), lr=0.1)
    outer, other, teacher = Wrapper(inner), AdamW(model.parameters()), EMATeacher(model)
    teacher.follow(model, inner)
    teacher.follow(model, outer)
    second = pickle.loads(pickle.dumps(copy.deepcopy(teacher)))
    step(model, outer)
    assert [teacher.updates, second.updates] == [1, 0]
    teacher.follow(model, other)
    step(model, outer)
    assert teacher.updates == 1
    step(model, other)
    assert teacher.updates == 2


def test_accelerate_accumulates_and_steps() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model = make()
    optimizer = SGD(model.parameters(), lr=0.1)
    prepared, outer = accelerator.prepare(model, optimizer)
    teachers = [EMATeacher(model), EMATeacher(model)]
    for teacher, followed in zip(teachers, (optimizer, outer), strict=True):
        teacher.follow(prepared, followed)
    for _ in range(6):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(torch.ones(3, 4)).sum())
            outer.step()
            outer.zero_grad()
    assert [teacher.updates for teacher in teachers] == [2, 2]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_zero_redundancy_shards_the_optimizer(tmp_path: Path) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model = make()
        optimizer, teacher = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1), EMATeacher(model)
        teacher.follow(model, optimizer)
        for count in range(1, 4):
            step(model, optimizer)
            assert teacher.updates == count
        overlapped = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1, overlap_with_ddp=True)
        with pytest.raises(TypeError, match=r"steps inside backward; .* after backward"):
            teacher.follow(model, overlapped)
    finally:
        dist.destroy_process_group()


class Fixed:
    """Whose step cannot be replaced."""

    __slots__ = ("param_groups",)

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]

    def step(self) -> None: ...


class Fused(Optimizer):
    """That has no step: it trains in backward."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})


def test_what_cannot_be_followed_is_refused() -> None:
    model = make()
    optimizer = SGD(model.parameters(), lr=0.1)
    teacher = EMATeacher(model)
    refused: list[tuple[Any, type[Exception], str]] = [
        (model, TypeError, r"optimizer is a Linear; need a torch\.optim\.Optimizer .* or call teacher\.update\(model\)"),
        (None, TypeError, "optimizer is a NoneType; need"),
        ([optimizer], TypeError, "optimizer is a list; need"),
        (StepLR(optimizer, 1), TypeError, "optimizer is a StepLR; need"),
        (torch.amp.GradScaler("cpu"), TypeError, "optimizer is a GradScaler; need"),
        (Fixed(model.parameters()), TypeError, "optimizer is a Fixed whose step cannot be replaced; .* teacher.update"),
        (Fused(model.parameters()), TypeError, "optimizer is a Fused, whose step does not train: it steps inside backward"),
        (
            SGD(make().parameters(), lr=0.1),
            ValueError,
            "optimizer is a SGD that has none of the model's parameters; .*teacher.update",
        ),
        (
            Unhooked(SGD(make().parameters(), lr=0.1)),
            ValueError,
            "optimizer is a Unhooked that has none of the model's parameters",
        ),
    ]
    for given, error, message in refused:
        with pytest.raises(error, match=message):
            teacher.follow(model, given)
    with pytest.raises(ValueError, match="need the model that EMATeacher was built from"):
        EMATeacher(nn.Linear(4, 3)).follow(model, optimizer)


def test_an_optimizer_that_steps_inside_backward_is_refused_there() -> None:
    model = make()
    optimizers: dict[Any, SGD] = {parameter: SGD([parameter], lr=0.1) for parameter in model.parameters()}

    def act(parameter: Tensor) -> None:
        optimizers[parameter].step()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]
    EMATeacher(model).follow(model, optimizers[model.weight])
    with pytest.raises(RuntimeError, match=r"optimizer steps inside backward.* Call teacher\.update\(model\) after backward"):
        model(torch.ones(3, 4)).sum().backward()
