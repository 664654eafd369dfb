"""Models that copy.deepcopy refuses: copied all the same, given twice, or refused by the attribute's name."""

import copy
import functools
import threading
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from otter_losses import EMATeacher


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def keep(model: nn.Module, value: object) -> nn.Module:
    model.kept = value  # type: ignore[assignment]
    return model


def spectral(model: nn.Sequential) -> nn.Module:
    nn.utils.spectral_norm(model[0])
    model(torch.ones(1, 3))
    return model


def pruned(model: nn.Sequential) -> nn.Module:
    prune.random_unstructured(model[1], "weight", 0.3)  # type: ignore[no-untyped-call]
    return model


def kept_in_a_dict(model: nn.Sequential) -> nn.Module:
    return keep(model, {"outputs": [model(torch.ones(1, 3))]})


def kept_in_an_object(model: nn.Sequential) -> nn.Module:
    return keep(model, SimpleNamespace(last=(model(torch.ones(1, 3)),)))


def kept_in_a_buffer(model: nn.Sequential) -> nn.Module:
    model[0].register_buffer("running", model(torch.ones(1, 3)).mean())
    return model


@pytest.mark.parametrize("prepare", [spectral, pruned, kept_in_a_dict, kept_in_an_object, kept_in_a_buffer])
def test_tensors_on_a_graph_are_detached_in_the_copy(prepare: Callable[[nn.Sequential], nn.Module]) -> None:
    model = prepare(make())
    teacher = EMATeacher(model)
    teacher.update(model)
    x = torch.randn(5, 3)
    torch.testing.assert_close(teacher(x), model.eval()(x).detach())


@pytest.mark.parametrize("value", [threading.Lock(), {"a": [threading.RLock()]}, (i for i in range(3))])
def test_what_cannot_be_copied_is_named(value: Any) -> None:
    model = make()
    keep(model[1], value)
    keep(model[0], [model])
    with pytest.raises(
        TypeError, match=rf"model\.1\.kept is a {type(value).__name__}, which copy\.deepcopy refuses.*module=build"
    ):
        EMATeacher(model)


class Singleton(nn.Linear):
    def __deepcopy__(self, memo: dict[int, object]) -> "Singleton":
        raise NotImplementedError("one is enough")


def test_a_model_that_refuses_by_itself_is_named() -> None:
    with pytest.raises(TypeError, match=r"model is a Singleton, which copy\.deepcopy refuses: one is enough"):
        EMATeacher(Singleton(2, 2))


def test_a_given_module_is_set_to_the_model() -> None:
    model = keep(make(), threading.Lock())
    second = make(seed=1).train()
    teacher = EMATeacher(model, decay=0.5, warmup=False, module=second)
    assert teacher.module is second
    start = model.state_dict()["0.weight"].clone()
    assert torch.equal(second.get_parameter("0.weight"), start)
    assert not second.training
    assert not any(parameter.requires_grad for parameter in second.parameters())
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1.0)
    teacher.update(model)
    torch.testing.assert_close(second.get_parameter("0.weight").detach(), start + 0.5)


def with_views(model: nn.Module) -> nn.Module:
    second = copy.deepcopy(model)
    second.get_parameter("1.weight").data = model.get_parameter("1.weight").data.view(2, 4)
    return second


@pytest.mark.parametrize("module", [lambda model: model, copy.copy, with_views])
def test_a_module_that_shares_tensors_is_refused(module: Callable[[nn.Module], nn.Module]) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"module shares (0|1)\.weight with the model"):
        EMATeacher(model, module=module(model))
    assert model[0].weight.requires_grad


class Sharing(nn.Linear):
    """Whose copies keep the bias in common."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Sharing":
        second = Sharing(self.in_features, self.out_features)
        second.bias = self.bias
        return second


def test_a_copy_that_shares_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module shares 0\.bias with the model"):
        EMATeacher(nn.Sequential(Sharing(2, 2)))


def test_a_module_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"module differs from the model at '1\.weight', shape \(2, 4\); need one architecture"):
        EMATeacher(make(), module=nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    with pytest.raises(TypeError, match=r"module is a Tensor; need a torch\.nn\.Module"):
        EMATeacher(make(), module=Tensor())  # type: ignore[arg-type]


class Net(nn.Module):
    """With a second way through, to be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output


def doubled(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return 2 * function(*args)

    return wrapper


def compiled_forward(net: Any) -> str:
    net.forward = torch.compile(net.forward, backend="eager")
    return "forward"


def compiled_inner_forward(net: Any) -> str:
    net.inner.forward = torch.compile(net.inner.forward, backend="eager")
    return r"inner\.forward"


def autocast_forward(net: Any) -> str:
    net.forward = torch.autocast("cpu", torch.bfloat16)(net.forward)
    return "forward"


def wrapped_forward(net: Any) -> str:
    net.forward = doubled(net.forward)
    return "forward"


def global_forward(net: Any) -> str:
    """As in a notebook, where what a function uses is global."""
    names = {"original": net.forward}
    net.forward = eval("lambda x: 2 * original(x)", names)
    return "forward"


def closure(net: Any) -> str:
    net.project = lambda x: net.inner(x)
    return "project"


def closure_in_a_list(net: Any) -> str:
    net.ways = [{"straight": lambda x: x @ net.inner.weight}]
    return "ways"


def default(net: Any) -> str:
    net.project = lambda x, layer=net.inner: layer(x)
    return "project"


def cached(net: Any) -> str:
    net.project = functools.lru_cache(net.forward)
    return "project"


def partial(net: Any) -> str:
    net.project = functools.partial(lambda x: net(x))
    return "project"


def hook(net: Any) -> str:
    net.register_forward_hook(lambda module, inputs, output: output + net.inner(inputs[0]))
    return "_forward_hooks"


HELD = [
    compiled_forward,
    compiled_inner_forward,
    autocast_forward,
    wrapped_forward,
    global_forward,
    closure,
    closure_in_a_list,
    default,
    cached,
    partial,
    hook,
]


@pytest.mark.parametrize("hold", HELD)
def test_functions_that_would_run_the_model_in_the_teacher_are_refused(hold: Callable[[Any], str]) -> None:
    model, again, second = Net(), Net(), Net()
    teacher = EMATeacher(model)
    place = hold(model)
    with pytest.raises(
        TypeError, match=rf"model\.{place} holds a function that would run the model .*, module=build_model\(\)\)"
    ):
        EMATeacher(model)
    teacher.update(model)
    vars(again).update({name: value for name, value in vars(model).items() if name not in ("_modules", "_parameters")})
    if place != r"inner\.forward":
        with pytest.raises(TypeError, match=rf"module\.{place} holds a function that would run the model"):
            EMATeacher(model, module=again)
    hold(second)
    assert EMATeacher(model, module=second).module is second


def compiled_in_place(net: Any) -> None:
    net.compile(backend="eager")
    net.inner.compile(backend="eager")


def bound(net: Any) -> None:
    net.forward = types.MethodType(doubled(Net.forward), net)
    net.project = functools.partial(net.inner)


def used_in_training_only(net: Any) -> None:
    net.register_full_backward_hook(lambda module, *gradients: net.zero_grad if module is None else None)


@pytest.mark.parametrize("prepare", [compiled_in_place, bound, used_in_training_only])
def test_functions_that_are_copied_or_not_run_are_no_obstacle(prepare: Callable[[Any], None]) -> None:
    model = Net()
    prepare(model)
    teacher = EMATeacher(model, decay=0.0, warmup=False)
    x = torch.randn(5, 3)
    before = model(x).detach()
    with torch.no_grad():
        model.inner.weight.mul_(3.0)
    assert torch.equal(teacher(x), before)
    teacher.update(model)
    assert torch.equal(teacher(x), model(x).detach())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiled", ["script", "trace", "inside"])
def test_scripts_are_averaged(compiled: str) -> None:
    def build() -> Any:
        net = nn.Sequential(Net(), nn.Dropout(0.5))
        if compiled == "trace":
            return torch.jit.trace(net.eval(), torch.ones(2, 3))  # type: ignore[no-untyped-call]
        return torch.jit.script(net) if compiled == "script" else nn.Sequential(torch.jit.script(net), nn.Linear(3, 2))

    model, x = build(), torch.randn(4, 3)
    for second in (None, build()):
        teacher = EMATeacher(model, decay=0.75, warmup=False, module=second)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        teacher.update(model)
        for average, start in zip(teacher.module.parameters(), before, strict=True):
            torch.testing.assert_close(average.detach(), start + 0.25)
        assert torch.equal(teacher(x), teacher(x))
        assert not teacher(x).requires_grad
