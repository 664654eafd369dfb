"""transformers' own Trainer drives our losses over its own models: evaluation, accumulation, bfloat16, teachers, processes."""

import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, TrainingArguments

from otter_losses import DistillationLoss, EMATeacher, InfoNCELoss, OTTERLoss, RobustLoss, SigLIPLoss
from otter_losses.integrations.transformers import PairLossTrainer, TeacherCallback
from otter_losses.losses.base import PairLoss
from tests.helpers.carried import Recorder
from tests.helpers.checks import relative
from tests.helpers.examples import check_falls, load, theirs
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]

PAIRS, BATCH = 8, 4
LENGTH, WORDS, END = 6, 20, 1
RATE = 0.05


def make_model(kind: str = "clip") -> Any:
    """In float64, so that the order of summation cannot be told."""
    torch.manual_seed(0)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": WORDS, "max_position_embeddings": LENGTH, "bos_token_id": END, "eos_token_id": END}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    text["pad_token_id"] = 0
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).double()
    return SiglipModel(SiglipConfig(text_config={**text, "projection_size": 8}, vision_config=vision)).double()


def make_pairs(count: int = PAIRS) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    words = torch.randint(2, WORDS, (count, LENGTH), generator=generator)
    words[:, -1] = END
    return [{"pixel_values": picture, "input_ids": row} for picture, row in zip(pictures, words, strict=True)]


def make_trainer(model: Any, folder: Path | str, **options: Any) -> PairLossTrainer:
    own = {name: options.pop(name) for name in ("loss", "teacher", "compute_loss_func", "callbacks") if name in options}
    pairs = options.pop("pairs", make_pairs())
    arguments = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    trainer = PairLossTrainer(
        model=model, args=TrainingArguments(str(folder), **arguments), train_dataset=pairs, eval_dataset=pairs, **own
    )
    return trainer


def collated(pairs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}


def value_of(model: Any, loss: PairLoss, pairs: list[dict[str, Tensor]]) -> Tensor:
    """By hand."""
    out = model(**collated(pairs))
    value: Tensor = loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), getattr(model, "logit_bias", None))
    return value


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradient_of(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def gradient_taken(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one step of SGD."""
    return {name: (before[name] - after[name]) / RATE for name in before}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert actual.keys() == expected.keys()
    floor = 1e-2 * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, wanted in expected.items():
        assert relative(actual[name], wanted, floor=floor) <= bound, name


@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_example_learns(which: str) -> None:
    check_falls(load("transformers", theirs("transformers") if which == "theirs" else None).main())


@pytest.mark.parametrize(("kind", "loss"), [("clip", InfoNCELoss()), ("siglip", SigLIPLoss())])
def test_loss_and_gradient_are_the_models_own_where_ours_is_the_same_loss(kind: str, loss: PairLoss, tmp_path: Path) -> None:
    model = make_model(kind)
    inputs = collated(make_pairs())
    theirs = model(**inputs, return_loss=True).loss
    wanted = gradient_of(theirs, model)
    ours, outputs = make_trainer(model, tmp_path, loss=loss).compute_loss(
        model, {**inputs, "return_loss": True}, return_outputs=True
    )
    assert outputs.loss is None  # not computed a second time
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-10)
    check_same(gradient_of(ours, model), wanted, 1e-8)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("pairs", [PAIRS, BATCH + 2])
def test_accumulated_gradient_is_the_mean_of_the_batches(pairs: int, labels: bool, tmp_path: Path) -> None:
    """Also where the second batch is smaller, and where labels make the Trainer count items."""
    model = make_model()
    before, data = parameters_of(model), make_pairs(pairs)
    parts = [value_of(model, OTTERLoss(), batch) for batch in (data[:BATCH], data[BATCH:])]
    wanted = gradient_of((parts[0] + parts[1]) / 2, model)
    if labels:
        data = [{**pair, "labels": torch.tensor([1, 2])} for pair in data]
    make_trainer(
        model, tmp_path, loss=OTTERLoss(), gradient_accumulation_steps=2, pairs=data, remove_unused_columns=False
    ).train()
    check_same(gradient_taken(before, parameters_of(model)), wanted, 1e-8)


@pytest.mark.parametrize("kind", ["list", "datasets"])
@pytest.mark.parametrize("unused", [True, False])
def test_columns_of_alpha_and_groups_reach_the_loss_with_their_pairs(kind: str, unused: bool, tmp_path: Path) -> None:
    """And not the model and its teacher; in shuffled batches, accumulated, and in the evaluation."""
    model, data = make_model(), make_pairs()
    alpha, groups = torch.linspace(0.05, 0.5, PAIRS), torch.arange(PAIRS) // 2
    rows: Any = [{**pair, "alpha": alpha[row], "groups": groups[row]} for row, pair in enumerate(data)]
    if kind == "datasets":
        columns = {name: torch.stack([row[name] for row in rows]).numpy() for name in rows[0]}
        rows = Dataset.from_dict({**columns, "caption": ["no column of the model's"] * PAIRS}).with_format("torch")
        rows = rows if unused else rows.remove_columns("caption")
    recorder = Recorder(model(**collated(data)).image_embeds)
    trainer = make_trainer(
        model,
        tmp_path,
        loss=recorder,
        teacher=EMATeacher(model),
        pairs=rows,
        train_sampling_strategy="random",
        learning_rate=0.0,
        max_steps=2,
        gradient_accumulation_steps=2,
        remove_unused_columns=unused,
    )
    trainer.train()
    recorder.check(alpha=alpha, groups=groups)
    recorder.calls.clear()
    trainer.evaluate()
    assert [call["rows"].tolist() for call in recorder.calls] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    torch.testing.assert_close(torch.cat([call["alpha"] for call in recorder.calls]).float(), alpha)


def test_alpha_is_believed_pair_by_pair(tmp_path: Path) -> None:
    model, data = make_model(), make_pairs()[:BATCH]
    alpha = torch.tensor([0.05, 0.5, 0.3, 0.1])
    before = parameters_of(model)
    out = model(**collated(data))
    wanted = gradient_of(OTTERLoss()(out.image_embeds, out.text_embeds, model.logit_scale.exp(), alpha=alpha.double()), model)
    make_trainer(
        model, tmp_path, loss=OTTERLoss(), pairs=[{**pair, "alpha": a} for pair, a in zip(data, alpha, strict=True)]
    ).train()
    check_same(gradient_taken(before, parameters_of(model)), wanted, 1e-6)


@pytest.mark.parametrize(
    ("loss", "alpha", "error"),
    [
        (InfoNCELoss(), 0.5, "alpha is no argument of a call of InfoNCELoss; need one of"),
        (OTTERLoss(), 1.5, r"alpha has values from 1\.5 to 1\.5; need numbers in \[0, 1\]"),
        (OTTERLoss(), 1, r"alpha has dtype torch\.int64; need float64"),
    ],
)
def test_a_column_that_the_loss_cannot_use_is_refused(loss: PairLoss, alpha: float, error: str, tmp_path: Path) -> None:
    data = [{**pair, "alpha": alpha} for pair in make_pairs()]
    with pytest.raises((TypeError, ValueError), match=error):
        make_trainer(make_model(), tmp_path, loss=loss, pairs=data).train()


def test_evaluation_gives_the_mean_over_its_batches_an_uneven_last_one_too(tmp_path: Path) -> None:
    model, data = make_model(), make_pairs(BATCH + 2)
    trainer = make_trainer(model, tmp_path, loss=OTTERLoss(), pairs=data)
    with torch.no_grad():
        parts = [float(value_of(model, OTTERLoss(), batch)) for batch in (data[:BATCH], data[BATCH:])]
    assert trainer.evaluate()["eval_loss"] == pytest.approx((BATCH * parts[0] + 2 * parts[1]) / (BATCH + 2), rel=1e-6)
    predicted = trainer.predict(data)
    assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)


def test_a_scale_that_siglip_ignores_gets_a_zero_gradient_not_none(tmp_path: Path) -> None:
    model = make_model("siglip")
    make_trainer(model, tmp_path, loss=OTTERLoss()).compute_loss(model, collated(make_pairs())).backward()
    assert model.logit_bias.grad is not None
    assert float(model.logit_bias.grad) == 0.0
    assert float(model.logit_scale.grad) != 0.0


@pytest.mark.parametrize("teacher", [None, "ema"])
def test_trains_in_bfloat16(teacher: str | None, tmp_path: Path) -> None:
    exact, model = make_model().float(), make_model().float()
    data = [{**pair, "pixel_values": pair["pixel_values"].float()} for pair in make_pairs()]
    before = parameters_of(model)
    taught = {"teacher": EMATeacher(model)} if teacher else {}
    make_trainer(model, tmp_path, loss=OTTERLoss(), pairs=data, bf16=True, **taught).train()
    make_trainer(exact, tmp_path, loss=OTTERLoss(), pairs=data).train()
    found, wanted = (gradient_taken(before, parameters_of(each)) for each in (model, exact))
    check_same(found, wanted, 0.2)
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted)


def test_ema_teacher_follows_once_per_optimizer_step(tmp_path: Path) -> None:
    model = make_model()
    teacher = EMATeacher(model, decay=0.5, warmup=False)
    trainer = make_trainer(model, tmp_path, loss=OTTERLoss(), teacher=teacher, gradient_accumulation_steps=2, max_steps=3)
    trainer.train()
    assert teacher.updates == 3
    trainer.train()
    assert teacher.updates == 6


@pytest.mark.parametrize("loss", [DistillationLoss(alpha=0.3), RobustLoss(alpha=0.3)], ids=lambda loss: type(loss).__name__)
def test_teacher_makes_the_targets(tmp_path: Path, loss: PairLoss) -> None:
    model, other = make_model(), make_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    frozen = copy.deepcopy(other).train()
    recorded: list[tuple[bool, bool]] = []
    frozen.register_forward_hook(lambda *_: recorded.append((frozen.training, torch.is_grad_enabled())))
    before, batch = parameters_of(model), make_pairs()[:BATCH]
    x, v = model(**collated(batch)), other(**collated(batch))
    own = loss(x.image_embeds, x.text_embeds, model.logit_scale.exp())
    value = loss(
        x.image_embeds,
        x.text_embeds,
        model.logit_scale.exp(),
        dist_image_features=v.image_embeds.detach(),
        dist_text_features=v.text_embeds.detach(),
        dist_logit_scale=other.logit_scale.detach().exp(),
    )
    assert float(own.detach()) != pytest.approx(float(value.detach()), rel=1e-3)
    wanted = gradient_of(value, model)
    make_trainer(model, tmp_path, loss=loss, teacher=frozen).train()
    check_same(gradient_taken(before, parameters_of(model)), wanted, 1e-8)
    assert recorded == [(False, False)]
    assert all(torch.equal(now, was) for now, was in zip(frozen.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("transformers", "PairLossTrainer"),
        ("transformers", "TeacherCallback"),
        ("sentence_transformers.base.losses", "CachedPairRankingLoss"),
    ],
)
def test_without_the_package_the_adapter_says_what_is_missing(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    adapter = runpy.run_path(str(ROOT / "otter_losses" / "integrations" / f"{package.split('.')[0]}.py"))
    arguments = {"teacher": None} if name == "TeacherCallback" else {"model": None, "loss": OTTERLoss()}
    with pytest.raises(
        ImportError, match=rf"{name} needs .*transformers.*, which cannot be imported: import of {package} halted"
    ):
        adapter[name](**arguments)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(TypeError, match=r"loss is <class .*OTTERLoss'>; need a loss of otter_losses"):
        make_trainer(model, tmp_path, loss=OTTERLoss)
    with pytest.raises(ValueError, match=r"reduction is 'none', one loss a pair; need 'mean'.*Leave reduction out\."):
        make_trainer(model, tmp_path, loss=SigLIPLoss(reduction="none"))
    with pytest.raises(ValueError, match="compute_loss_func is given beside loss"):
        make_trainer(model, tmp_path, loss=OTTERLoss(), compute_loss_func=lambda *_: None)
    with pytest.raises(ValueError, match="callbacks holds a TeacherCallback; need none"):
        make_trainer(model, tmp_path, loss=OTTERLoss(), callbacks=[TeacherCallback(EMATeacher(model))])
    with pytest.raises(TypeError, match="teacher is a CLIPModel; need an EMATeacher"):
        TeacherCallback(model)
    trainer = make_trainer(model, tmp_path, loss=OTTERLoss())
    trainer.model = model.text_model
    with pytest.raises(TypeError, match="CLIPTextModel returned BaseModelOutputWithPooling; need a model with a logit_scale"):
        trainer.compute_loss(model.text_model, {"input_ids": collated(make_pairs())["input_ids"]})
