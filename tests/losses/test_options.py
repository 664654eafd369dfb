"""A loss's options: seen by help() and editors, and named where one is misspelt."""

import inspect
import pydoc
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch

from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
from otter_losses.losses.base import Contract, PairLoss
from otter_losses.losses.registry import LOSSES

every_loss = pytest.mark.parametrize("loss", [row.module for row in LOSSES.values()])
FEATURES = torch.eye(3)


class Preset(OTTERLoss):
    def __init__(self, name: str, **contract: Any) -> None:
        super().__init__(epsilon=0.3, **contract)
        self.name = name


@pytest.mark.parametrize(
    ("build", "loss", "wrong", "meant"),
    [
        (lambda: OTTERLoss(iteration=3), "OTTERLoss", "iteration", "iterations"),  # type: ignore[call-arg]
        (lambda: OTTERLoss(0.7, gama_text=0.5), "OTTERLoss", "gama_text", "gamma_text"),  # type: ignore[call-arg]
        (lambda: OTTERLoss.official(epsilom=0.1), "OTTERLoss", "epsilom", "epsilon"),
        (lambda: InfoNCELoss(memory=5), "InfoNCELoss", "memory", "max_memory"),  # type: ignore[call-arg]
        (lambda: SigLIPLoss(reduce="none"), "SigLIPLoss", "reduce", "reduction"),  # type: ignore[arg-type]
        (lambda: LabelSmoothingLoss(label_smoothing=0.1), "LabelSmoothingLoss", "label_smoothing", "smoothing"),  # type: ignore[call-arg]
        (lambda: DistillationLoss(alfa=0.1), "DistillationLoss", "alfa", "alpha"),  # type: ignore[call-arg]
        (lambda: Preset("mine", gather_with_gradient=True), "Preset", "gather_with_gradient", "gather_with_grad"),
    ],
)
def test_a_misspelt_option_is_named_with_the_nearest(build: Callable[[], PairLoss], loss: str, wrong: str, meant: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^{wrong} is no argument of {loss}; need one of .*\b{meant}\b.* Did you mean {meant}\?$"
    ):
        build()


@pytest.mark.parametrize(
    ("loss", "call", "meant"),
    [
        (OTTERLoss(), {"alfa": 0.5}, "alpha"),
        (OTTERLoss(), {"dist_logits_scale": 5.0}, "dist_logit_scale"),
        (OTTERLoss.official(), {"distil_logit_scale": 5.0}, "distill_logit_scale"),
        (InfoNCELoss(), {"dist_image_feature": FEATURES}, "dist_image_features"),
        (SigLIPLoss(), {"reductions": "none"}, "reduction"),
        (LabelSmoothingLoss(), {"smothing": 0.2}, "smoothing"),
    ],
)
def test_a_misspelt_argument_of_a_call_is_named_with_the_nearest(loss: PairLoss, call: dict[str, Any], meant: str) -> None:
    (wrong,) = call
    name = type(loss).__name__
    with pytest.raises(TypeError, match=rf"^{wrong} is no argument of a call of {name}; need .* Did you mean {meant}\?$"):
        loss(FEATURES, FEATURES, 5.0, **call)


def test_another_way_to_build_a_loss_is_no_argument() -> None:
    class Preset(OTTERLoss):
        pass

    for build in (OTTERLoss, Preset):
        name = build.__name__
        with pytest.raises(
            TypeError, match=rf"^official is no argument of {name}; need {name}\.official\(\), which builds it\.$"
        ):
            build(alpha=0.3, official=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^train is no argument of OTTERLoss; need one of alpha, "):
        OTTERLoss(train=True)  # type: ignore[call-arg]


def test_what_resembles_nothing_is_named_without_a_guess() -> None:
    with pytest.raises(TypeError, match=r"^queue is no argument of OTTERLoss; need one of alpha, .*, max_memory\.$"):
        OTTERLoss(queue=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^alpha is no argument of a call of InfoNCELoss; need one of image_features, "):
        InfoNCELoss()(FEATURES, FEATURES, 5.0, alpha=0.5)


@pytest.mark.parametrize("shard", [None, 3])
def test_a_call_takes_no_shard(shard: Any) -> None:
    with pytest.raises(TypeError, match="shard is no argument of a call of OTTERLoss"):
        OTTERLoss()(FEATURES, FEATURES, 5.0, shard=shard)


# ---- what is shown ----


@every_loss
def test_a_constructor_shows_every_parameter_with_its_default(loss: type[PairLoss]) -> None:
    shown = inspect.signature(loss).parameters
    assert all(each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in shown.values())
    assert list(shown)[-len(Contract.__annotations__) :] == list(Contract.__annotations__)
    kept = loss()
    for name in {"uneven", "reduction", "backend", "max_memory", "group", *kept.options()} & set(shown):
        assert shown[name].default == getattr(kept, name), name
    for name, parameter in shown.items():
        loss(**{name: parameter.default})


@every_loss
def test_help_shows_them(loss: type[PairLoss]) -> None:
    text = pydoc.plain(pydoc.render_doc(loss))
    (heading,) = [line for line in text.splitlines() if line.startswith(f" |  {loss.__name__}(")]
    for parameter in inspect.signature(loss).parameters.values():
        assert str(parameter) in heading
    assert "**contract" not in text


def test_the_released_arithmetic_shows_them_too() -> None:
    shown = inspect.signature(OTTERLoss.official).parameters
    assert list(shown) == list(inspect.signature(OTTERLoss).parameters)
    assert shown["epsilon"].default == 0.15


def test_a_subclass_shows_its_own_and_those_it_passes_on() -> None:
    shown = inspect.signature(Preset).parameters
    assert next(iter(shown)) == "name"
    assert shown["iterations"].default == 5
    assert shown["uneven"].kind is inspect.Parameter.KEYWORD_ONLY


def test_what_static_checkers_are_told_is_what_the_constructor_takes() -> None:
    names = {"ProcessGroup": type(None)}  # which is there for type checkers alone
    told = typing.get_type_hints(Contract, localns=names)
    taken = typing.get_type_hints(PairLoss.__init__, localns=names)
    assert {name: taken[name] for name in inspect.signature(PairLoss).parameters} == told
