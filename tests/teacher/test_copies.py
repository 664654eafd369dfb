"""Models that copy.deepcopy refuses: copied all the same, given twice, or refused by the attribute's name."""

import copy
import threading
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
