"""Teachers in the adapters: separate from what the student trains, in eval mode and without gradient, and left as they were."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments

from otter_losses import OTTERLoss
from otter_losses.integrations.open_clip import add_teacher
from otter_losses.integrations.sentence_transformers import CachedPairRankingLoss, PairRankingLoss
from otter_losses.integrations.teachers import check_separate
from otter_losses.integrations.transformers import PairLossTrainer

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")

Step = Callable[[], Tensor]
PAIRS, SCALE = 6, 20.0


class Model(nn.Module):
    """Called, and answers, as each client's own; a trunk that acts differently in training, and an adapter beside it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.adapter = nn.Linear(4, 5)
        self.logit_scale = nn.Parameter(torch.tensor(SCALE).log())

    def __getitem__(self, index: int) -> nn.Module:
        return self.trunk  # as of a SentenceTransformer

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.trunk(x) + self.adapter(x), dim=-1)

    def forward(self, first: Any, second: Tensor | None = None) -> Any:
        if second is None:
            return {"sentence_embedding": self.embed(first["input_ids"])}
        x, y = self.embed(first), self.embed(second)
        return Output({"image_features": x, "text_features": y, "logit_scale": self.logit_scale.exp()})


class Output(dict[str, Tensor]):
    """open_clip's dict, with transformers' attributes."""

    @property
    def image_embeds(self) -> Tensor:
        return self["image_features"]

    @property
    def text_embeds(self) -> Tensor:
        return self["text_features"]


def pairs() -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, PAIRS, 4, generator=torch.Generator().manual_seed(5))
    return first, second


def columns() -> list[dict[str, Tensor]]:
    return [{"input_ids": column} for column in pairs()]


def open_clip(model: nn.Module, teacher: nn.Module, folder: Path) -> Step:
    add_teacher(model, teacher)
    return lambda: OTTERLoss()(**model(*pairs()))


def transformers(model: nn.Module, teacher: nn.Module, folder: Path) -> Step:
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    trainer = PairLossTrainer(model=model, args=arguments, loss=OTTERLoss(), teacher=teacher)
    return lambda: trainer.compute_loss(model, dict(zip(("first", "second"), pairs(), strict=True)))


def sentence_transformers(model: nn.Module, teacher: nn.Module, folder: Path) -> Step:
    loss = PairRankingLoss(model, OTTERLoss(), SCALE, teacher)
    return lambda: loss.train()(columns())


def cached(model: nn.Module, teacher: nn.Module, folder: Path) -> Step:
    loss = CachedPairRankingLoss(model, OTTERLoss(), SCALE, teacher, mini_batch_size=PAIRS)
    return lambda: loss.train()(columns())


adapters = pytest.mark.parametrize("adapter", [open_clip, transformers, sentence_transformers, cached])


def other_trunk(model: Model) -> Model:
    teacher = Model(seed=1)
    teacher.adapter = model.adapter
    return teacher


def tied(model: Model) -> Model:
    teacher = Model(seed=1)
    teacher.adapter.bias = model.trunk[0].bias  # type: ignore[assignment]
    return teacher


def assigned(model: Model) -> Model:
    """Parameters of its own over the same memory."""
    teacher = Model(seed=1)
    teacher.load_state_dict(model.state_dict(), assign=True)
    return teacher.requires_grad_(False)


def cut_out(model: Model) -> Model:
    """With numbers of its own before and after."""
    teacher = Model(seed=1)
    longer = nn.Parameter(torch.randn(7, 4))
    model.adapter.weight = longer
    teacher.adapter.weight = nn.Parameter(longer.data[2:], requires_grad=False)
    return teacher


def held_by_the_model(model: Model) -> nn.Module:
    model.helper = Model(seed=1)
    return model.helper


SHARING: dict[str, tuple[Callable[[Model], nn.Module], str]] = {
    "the model itself": (lambda model: model, "'logit_scale' with the model, which trains it as 'logit_scale'"),
    "around the model": (lambda model: nn.Sequential(model), "'0.logit_scale' with the model, which trains it as 'logit_scale'"),
    "a part of the model": (held_by_the_model, "'logit_scale' with the model, which trains it as 'helper.logit_scale'"),
    "one module": (other_trunk, "'adapter.weight' with the model, which trains it as 'adapter.weight'"),
    "one parameter": (tied, "'adapter.bias' with the model, which trains it as 'trunk.0.bias'"),
    "a part of one memory": (cut_out, "'adapter.weight' with the model, which trains it as 'adapter.weight'"),
    "one memory": (assigned, "'logit_scale' with the model, which trains it as 'logit_scale'"),
}


@adapters
@pytest.mark.parametrize("sharing", SHARING)
def test_a_teacher_whose_weights_the_model_trains_is_refused(adapter: Any, sharing: str, tmp_path: Path) -> None:
    model = Model()
    share, message = SHARING[sharing]
    teacher = share(model)
    with pytest.raises(ValueError, match=rf"^teacher shares {message}.*Use EMATeacher\(model\), or copy\.deepcopy\(model\)"):
        adapter(model, teacher, tmp_path)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@adapters
@pytest.mark.parametrize("teacher", ["openai/clip-vit-base-patch32", Model(seed=1).embed, [Model(seed=1)]], ids=type)
def test_a_teacher_that_is_no_module_is_refused(adapter: Any, teacher: Any, tmp_path: Path) -> None:
    kind = type(teacher).__name__
    with pytest.raises(TypeError, match=rf"^teacher is a {kind}; need a torch\.nn\.Module, called as the model is\."):
        adapter(Model(), teacher, tmp_path)


def test_neighbours_in_one_memory_are_told_apart() -> None:
    """As the tensors of one mapped file are."""
    numbers = torch.randn(10, 4)
    model, other = Model(), Model()
    model.adapter.weight = nn.Parameter(numbers[:5])
    other.adapter.weight = nn.Parameter(numbers[5:])
    check_separate(other, model)
    other.adapter.weight = nn.Parameter(numbers[4:9])
    with pytest.raises(ValueError, match=r"shares 'adapter\.weight'"):
        check_separate(other, model)


@adapters
def test_a_part_in_common_is_refused_where_training_finds_it_unfrozen(adapter: Any, tmp_path: Path) -> None:
    model, teacher = Model(), Model(seed=1)
    teacher.trunk = model.trunk.requires_grad_(False)
    step = adapter(model, teacher, tmp_path)
    if adapter is transformers:
        model.eval()
        step()  # which is no training
        model.train()
    model.trunk.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"^teacher shares 'trunk\.0\.weight' with the model, which trains it as 'trunk\.0\.weight'"
    ):
        step()


@pytest.mark.parametrize("first", [None, Model(seed=1)], ids=["none", "another"])
def test_a_teacher_that_is_set_later_is_looked_at_too(first: nn.Module | None) -> None:
    model, other = Model(), Model(seed=2)
    loss = PairRankingLoss(model, OTTERLoss(), SCALE, first)
    loss(columns())
    modes: list[bool] = []
    other.trunk.register_forward_hook(lambda trunk, *_: modes.append(trunk.training))
    loss.teacher = other
    loss(columns())
    assert modes == [False, False]
    loss.teacher = model
    with pytest.raises(ValueError, match=r"^teacher shares 'logit_scale' with the model"):
        loss(columns())


def test_a_frozen_model_does_not_teach_itself() -> None:
    """Its hook would call itself for ever."""
    model = Model().requires_grad_(False)
    for teacher in (model, nn.Sequential(model)):
        with pytest.raises(ValueError, match="teacher is or contains the model that it teaches"):
            add_teacher(model, teacher)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("lazy", [False, True], ids=["on the meta device", "not yet made"])
def test_parameters_without_an_address_are_told_apart(lazy: bool) -> None:
    with torch.device("meta"):
        model, other = Model(), Model()
    if lazy:
        model.adapter, other.adapter = nn.LazyLinear(5), nn.LazyLinear(5)
    check_separate(other, model)
    other.adapter = model.adapter
    with pytest.raises(ValueError, match=r"shares 'adapter\.weight'"):
        check_separate(other, model)


@adapters
@pytest.mark.parametrize("frozen", [False, True], ids=["other weights", "a frozen trunk in common"])
def test_the_teacher_is_called_in_eval_mode_and_left_as_it_was(adapter: Any, frozen: bool, tmp_path: Path) -> None:
    model, teacher = Model(), Model(seed=1)
    if frozen:  # as LoRA's base, whose weights neither trains
        teacher.trunk = model.trunk.requires_grad_(False)
        model.trunk[1].momentum = 0.0  # type: ignore[assignment]  # the student's forward would move the statistics that it shares
    step = adapter(model, teacher, tmp_path)
    for module in (model, teacher):
        module.train()
    exact, student = copy.deepcopy(teacher).eval(), copy.deepcopy(model)
    modes = {name: module.training for name, module in teacher.named_modules()}
    statistics = copy.deepcopy(dict(teacher.trunk[1].named_buffers()))
    torch.manual_seed(7)
    value = step()
    torch.manual_seed(7)
    x, y = (student.embed(column) for column in pairs())  # with the same dropout
    v, t = (exact.embed(column).detach() for column in pairs())
    assert float(value.detach()) == pytest.approx(float(OTTERLoss()(x, y, SCALE, None, v, t).detach()), rel=1e-5)
    value.backward()
    assert model.adapter.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert {name: module.training for name, module in teacher.named_modules()} == modes
    if not frozen:
        assert all(torch.equal(buffer, statistics[name]) for name, buffer in teacher.trunk[1].named_buffers())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_frozen_script_teaches() -> None:
    """It has no mode to be put in."""

    class Scripted(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
            return {"image_features": 2 * first, "text_features": second}

    model = Model()
    add_teacher(model, torch.jit.freeze(torch.jit.script(Scripted().eval())))
    assert torch.equal(model(*pairs())["dist_image_features"], 2 * pairs()[0])
