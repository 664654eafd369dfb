"""The paper's settings: configurations, losses, encoders, and the plan made from them."""

import doctest
import math
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.reproduction import config, models, objective, plan
from benchmarks.reproduction.config import ConfigError
from benchmarks.reproduction.data import Batch
from benchmarks.reproduction.trainer import Trainer
from tests.helpers.batches import make_features
from tests.helpers.checks import relative

from .runs import ALONE, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = ("info_nce", "label_smoothing", "distillation", "otter", "otter_official")


def test_configurations_hold_the_papers_settings() -> None:
    for row in ROWS:
        settings = config.load([row])
        train_, model = settings.train, settings.model
        assert (train_.batch, train_.chunk, train_.epochs, train_.lr, train_.momentum) == (512, 64, 10, 3e-3, 0.9)
        assert (train_.weight_decay, train_.ema_decay, settings.loss.directions) == (0.0, 0.999, "sum")
        assert (model.image, model.text) == ("resnet50.ram_in1k", "johngiorgi/declutr-sci-base")
        assert (model.max_tokens, model.width, model.log_scale, model.min_scale, model.max_scale) == (60, 768, 3.9, 1.0, 100.0)
        assert (settings.data.name, settings.data.size, settings.data.pairs // train_.batch) == ("CC3M", 224, 5_687)
        assert settings.loss.teacher == (row in ("distillation", "otter", "otter_official"))
        assert model.temperatures == (2 if row == "otter_official" else 1)
        assert model.pretrained
        if "otter" in row:
            expected = {"alpha": 0.5, "epsilon": 0.15, "iterations": 5, "gamma_image": 1.0, "gamma_text": 1.0}
            assert settings.loss.options == expected
    assert config.load(["otter", "fbnet_c"]).model.image == "fbnetc_100.rmsp_in1k"
    assert config.load(["otter", "sentence_bert"]).model.text == "sentence-transformers/bert-base-nli-mean-tokens"
    assert [config.load(["otter", each]).data.name for each in ("yfcc15m", "wit")] == ["YFCC15M", "WIT"]


@pytest.mark.parametrize("row", ROWS)
def test_every_loss_trains_both_encoders_and_its_temperatures(row: str) -> None:
    settings = tiny(names=(row,))
    trainer = Trainer(settings, ALONE, pairs=8, steps=4)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    captions = [f"caption {number}" for number in range(8)]
    batch = Batch(torch.rand(8, 3, 64, 64), captions, models.tokenizer(settings.model)(captions), [])
    for _ in range(2):  # the last BatchNorm of a block starts at 0, and nothing before it moves
        assert math.isfinite(trainer.update(batch))
    still = {name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])}
    assert not {name for name in still if "embeddings" not in name and "key.bias" not in name}
    assert set(trainer.scales()) == {"logit_scale", "distill_logit_scale"} if row == "otter_official" else {"logit_scale"}
    assert (trainer.teacher is not None) == settings.loss.teacher


def test_scales_are_held_between_1_and_100() -> None:
    model = models.PairModel(tiny(names=("otter_official",)).model)
    assert [round(float(model.scale(model.log_scale.detach() + shift)), 2) for shift in (-9.0, 0.0, 9.0)] == [1.0, 49.4, 100.0]
    assert model.distill_log_scale is not None
    assert model.distill_log_scale.item() == pytest.approx(3.9)


def test_the_papers_loss_has_the_gradient_of_the_released_sum_on_one_device() -> None:
    """So the authors' learning rate fits both."""
    gradients = []
    for row in ("otter", "otter_official"):
        loss = objective.build(config.load([row]).loss, ALONE)
        x, y = (each.float().requires_grad_() for each in make_features("random", 12, 8, seed=1))
        v, t = make_features("random", 12, 9, seed=2)
        torch.autograd.backward(loss(x, y, 20.0, dist_image_features=v.float(), dist_text_features=t.float()))
        gradients.append((x.grad, y.grad))
    for paper, official in zip(*gradients, strict=True):
        assert relative(paper, official) < 1e-4


def test_diagnostics_tell_the_released_mistake_from_the_paper() -> None:
    v, t = (each.float() for each in make_features("random", 32, 16, seed=3))
    rows = {row: objective.diagnose(config.load([row]).loss, v, t, scale=50.0, ranks=4) for row in ("otter", "otter_official")}
    assert rows["otter"]["mass_off_pair"] == pytest.approx(0.5)
    assert rows["otter_official"]["mass_off_pair"] < 0.45  # three of four ranks give mass back to the given pair
    alone = objective.diagnose(config.load(["otter_official"]).loss, v, t, scale=50.0, ranks=1)
    assert alone == pytest.approx(rows["otter"], rel=1e-3)
    kd = objective.diagnose(config.load(["distillation"]).loss, v, t, scale=50.0, ranks=4)
    softmaxes = torch.stack(((100 * v @ t.T).softmax(1), (100 * t @ v.T).softmax(1)))
    assert kd["mass_off_pair"] == pytest.approx(0.5 - 0.5 * float(softmaxes.diagonal(dim1=1, dim2=2).mean()), rel=1e-4)
    assert kd["effective_matches"] == pytest.approx(float(torch.special.entr(softmaxes).sum(2).exp().mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("names", "override", "message"),
    [
        (["otter"], "train.batches=3", r"train.batches is no setting; need one of epochs, batch"),
        (["otter"], "train.batch=many", r"train.batch is 'many', a str; need a whole number"),
        (["otter"], "train.lr=0", r"train.lr is 0.0; need more than 0"),
        (["otter"], "train=3", r"train is 3; need a table"),
        (["otter"], "train.precision=fp8", r"train.precision is 'fp8'; need one of 'auto', 'fp16'"),
        (["otter"], "nothing", r"--set 'nothing' is no setting; need SECTION.NAME=VALUE"),
        (["mistery"], "train.batch=8", r"no configuration 'mistery'; need a TOML file, or one of base, "),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(names: list[str], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(names, [override])


def test_losses_and_encoders_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"loss.options \{'alpha': 2\} do not suit OTTERLoss: alpha is 2"):
        objective.build(config.load(["otter"], ["loss.options={alpha = 2}"]).loss, ALONE)
    with pytest.raises(ConfigError, match=r"loss.name is 'ClipLoss'; need one of InfoNCELoss"):
        objective.build(config.load(["otter"], ["loss.name=ClipLoss"]).loss, ALONE)
    with pytest.raises(ConfigError, match=r"model.image 'resnet51' cannot be had from timm"):
        models.PairModel(tiny("model.image=resnet51").model)


def test_files_extend_others_and_not_themselves(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('extends = ["otter", "two.toml"]\n[train]\nbatch = 64\n')
    (tmp_path / "two.toml").write_text("[train]\nbatch = 32\nlr = 1.0\n")
    found = config.load([tmp_path / "one.toml"], ["loss.options.alpha=0.25"])
    assert (found.train.batch, found.train.lr, found.loss.name) == (64, 1.0, "OTTERLoss")
    assert found.loss.options["alpha"] == 0.25
    assert found.loss.options["iterations"] == 5
    (tmp_path / "two.toml").write_text('extends = "one.toml"\n')
    with pytest.raises(ConfigError, match=r"one.toml extends itself"):
        config.load([tmp_path / "one.toml"])
    (tmp_path / "two.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match=r"two.toml cannot be read as TOML"):
        config.load([tmp_path / "two.toml"])


def test_examples_in_docstrings() -> None:
    for name in ("config", "models", "checkpoint", "objective"):
        found = doctest.testmod(import_module(f"benchmarks.reproduction.{name}"))
        assert found.attempted
        assert not found.failed


def test_the_plan_derives_hours_from_operations_and_knows_the_papers_row() -> None:
    assert plan.forward_flops(config.load(["otter"])) == pytest.approx((8.2e9, 10.3e9), rel=0.01)
    text = plan.describe(config.load(["otter"]), ["otter"], ["train.seed=1"])
    assert "torchrun --nproc-per-node 8 -m benchmarks.reproduction train otter --set train.seed=1 --data DATA --run RUN" in text
    assert "4.0, derived, not measured: 29,117,440 pairs x 4 forward passes" in text
    assert "goi hit@1 29.1, goi hit@5 59.6, goi hit@10 70.9, in10k hit@1 12.0" in text
    assert "no complete row for 'OTTER'" in plan.row(config.load(["otter", "fbnet_c"]))
    one = plan.Machine("GPU", devices=1, peak=1e14, share=0.3)
    assert plan.passes(config.load(["otter"]), 1) == 5  # accumulation encodes everything twice
    assert "| OTTER              | ours  |           |" in text
    assert "unknown" in plan.hours(config.load(["otter", "wit"]), one)
