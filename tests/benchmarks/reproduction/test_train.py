"""Training of the reproduction: the paper's settings, runs that survive, and a dry run over two processes."""

import doctest
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_features, relative
from torch import Tensor

from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import checkpoint, config, models, objective, plan
from benchmarks.reproduction.checkpoint import CheckpointError
from benchmarks.reproduction.config import Config, ConfigError
from benchmarks.reproduction.data import Batch
from benchmarks.reproduction.place import Place
from benchmarks.reproduction.prepare import make_synthetic
from benchmarks.reproduction.train import STOPPED, TrainingError, train
from benchmarks.reproduction.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]
ROWS = ("info_nce", "label_smoothing", "distillation", "otter", "otter_official")
ON_TOP = ("fbnet_c", "sentence_bert", "yfcc15m", "wit")
ALONE = Place(0, 1, torch.device("cpu"))
STEPS = 6
EXACT = ["model.image=test_vit.r160_in1k", "model.text_config.hidden_dropout_prob=0.0"]
EXACT += ["model.text_config.attention_probs_dropout_prob=0.0"]
"""No BatchNorm and no dropout: what does not depend on how a batch is cut."""


def tiny(*overrides: str, names: tuple[str, ...] = ("otter",)) -> Config:
    return config.load([*names, "dry_run", "tiny"], ["data.workers=0", *overrides])


def in_process(work: Callable[..., None], *arguments: Any) -> Any:
    """A forked child: it has everything imported already."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def finished(*children: Any) -> list[int]:
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def final(folder: Path) -> dict[str, Any]:
    state = checkpoint.newest(folder / "checkpoints")
    assert state is not None
    return state


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of nested tables, by name."""
    if isinstance(value, Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path: tensor for key, each in pairs for path, tensor in tensors(each, f"{name}.{key}").items()}


def assert_same_to_the_bit(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert len(first) > 100
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
    assert one["step"] == other["step"]
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    assert (one["scaler"], one["seen"], one["bad"]) == (other["scaler"], other["seen"], other["bad"])


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pairs") / "data"
    make_synthetic(folder, STEPS // 2 * 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last state of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finished(in_process(train, tiny(), data, folder, ALONE)) == [0]
    return final(folder)


# The settings


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
    assert rows["otter"]["given"] == pytest.approx(0.5)
    assert rows["otter_official"]["given"] > 0.55  # three of four ranks give mass back to the given pair
    alone = objective.diagnose(config.load(["otter_official"]).loss, v, t, scale=50.0, ranks=1)
    assert alone == pytest.approx(rows["otter"], rel=1e-3)
    kd = objective.diagnose(config.load(["distillation"]).loss, v, t, scale=50.0, ranks=4)
    softmax = (100 * v @ t.T).softmax(1)
    assert kd["given"] == pytest.approx(0.5 + 0.5 * float(softmax.diagonal().mean()), rel=1e-4)
    assert kd["transported"] == pytest.approx(float(torch.special.entr(softmax).sum(1).mean()), rel=1e-4)


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


# Runs that survive


def killed_while_saving(data: Path, folder: Path, function: str, call: int) -> None:
    """Trains, and dies without a word when the checkpoint's writer calls a function of `os` for the n-th time."""
    real = getattr(os, function)
    calls = iter(range(1, 1000))

    def deadly(*arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, function, deadly)
    train(tiny(), data, folder, ALONE)


def test_killed_anywhere_while_saving_a_run_goes_on_to_the_bit(data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Two fsyncs (file and folder) and one replace a checkpoint; each death is at another one, in one and the same run."""
    for saved, (function, call) in enumerate((("fsync", 1), ("replace", 1), ("fsync", 2), ("replace", 2), ("fsync", 4))):
        assert finished(in_process(killed_while_saving, data, tmp_path, function, call)) == [-signal.SIGKILL]
        newest = checkpoint.newest(tmp_path / "checkpoints")
        assert (newest["step"] if newest else 0) == [0, 0, 1, 2, 4][saved]
    assert finished(in_process(train, tiny(), data, tmp_path, ALONE)) == [0]
    assert_same_to_the_bit(final(tmp_path), undisturbed)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.suffix != ".pt"] == []
    assert [line["step"] for line in events(tmp_path, "started")] == [0, 0, 0, 1, 2, 4]


def test_killed_at_random_moments_a_run_goes_on_to_the_bit(data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    draw = random.Random(0)
    deaths = 0
    while deaths < 4:
        steps = len(list((tmp_path / "checkpoints").glob("*.pt")))
        child = in_process(train, tiny(), data, tmp_path, ALONE)
        log = tmp_path / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        while child.is_alive() and (log.stat().st_size if log.exists() else 0) <= before:
            time.sleep(0.001)  # until it has started
        time.sleep(draw.uniform(0, 0.2))
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        if finished(child) == [0]:
            break
        deaths += 1
        assert len(list((tmp_path / "checkpoints").glob("*.pt"))) >= min(steps, 1)
    assert finished(in_process(train, tiny(), data, tmp_path, ALONE)) == [0]
    assert_same_to_the_bit(final(tmp_path), undisturbed)
    assert deaths


def terminated(data: Path, folder: Path, after: int) -> None:
    real = Trainer.update

    def update(self: Trainer, batch: Any) -> Tensor:
        if self.step == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    Trainer.update = update  # type: ignore[method-assign]
    train(tiny("train.save_every=100"), data, folder, ALONE)


def test_sigterm_saves_and_ends_and_the_run_goes_on_to_the_bit(data: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    assert finished(in_process(terminated, data, tmp_path, 3)) == [STOPPED]
    assert [line["step"] for line in events(tmp_path, "stopped")] == [4]
    assert final(tmp_path)["step"] == 4
    assert finished(in_process(train, tiny(), data, tmp_path, ALONE)) == [0]
    assert_same_to_the_bit(final(tmp_path), undisturbed)


def out_of_room(data: Path, folder: Path, room: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        train(tiny(), data, folder, ALONE)
    except CheckpointError as error:
        (folder / "message").write_text(str(error))


def test_a_full_disk_is_an_error_that_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    assert finished(in_process(train, tiny(), data, tmp_path, ALONE, 2)) == [0]
    kept = final(tmp_path)
    size = (tmp_path / "checkpoints" / "00000002.pt").stat().st_size
    assert finished(in_process(out_of_room, data, tmp_path, size // 2)) == [0]
    message = (tmp_path / "message").read_text()
    assert "00000003.pt could not be written: " in message
    assert "GB are free. The last good checkpoint is" in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001.pt", "00000002.pt"]
    assert_same_to_the_bit(final(tmp_path), kept)
    assert "could not be written" in events(tmp_path, "failed")[0]["error"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(data: Path, tmp_path: Path) -> None:
    assert finished(in_process(train, tiny(), data, tmp_path, ALONE, 2)) == [0]
    newest, before = checkpoint.found(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"00000002.pt cannot be read: .* Taking the one before"):
        assert final(tmp_path)["step"] == 1
    before.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="Taking the one before"),
        pytest.raises(CheckpointError, match=r"00000001.pt cannot be read"),
    ):
        checkpoint.newest(tmp_path / "checkpoints")


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "step": Malice()}, tmp_path / "00000001.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read: UnpicklingError"):
        checkpoint.read(tmp_path / "00000001.pt")
    assert not (tmp_path / "harmed").exists()
    torch.save({"step": 1}, tmp_path / "00000002.pt")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of this program"):
        checkpoint.read(tmp_path / "00000002.pt")
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in"):
        checkpoint.load_model(tmp_path / "checkpoints")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("train.save_every=2", "train.log_every=3")
    train(settings, data, tmp_path, ALONE, until=2)
    kept = final(tmp_path)
    real = objective.build

    def spoilt(*arguments: Any) -> Any:
        loss = real(*arguments)
        return lambda **call: loss(**call) * torch.nan

    monkeypatch.setattr(objective, "build", spoilt)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 3. Try a smaller train.lr"):
        train(settings, data, tmp_path, ALONE)
    assert_same_to_the_bit(final(tmp_path), kept)


def test_weights_that_are_no_numbers_are_not_saved(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(is not finite after step 1, though the loss still was|loss is nan at step)"):
        train(tiny("train.lr=1e37"), data, tmp_path, ALONE)
    assert checkpoint.newest(tmp_path / "checkpoints") is None


def test_bad_samples_are_named_and_too_many_stop_the_run(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "data", 24)
    archive = tmp_path / "data" / "00000.tar"
    stamp, content = archive.stat(), archive.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    archive.write_bytes(content[:start] + b"\0" * 64 + content[start + 64 :])
    os.utime(archive, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    train(tiny(), tmp_path / "data", tmp_path / "run", ALONE, until=3)
    named = [json.loads(line) for line in (tmp_path / "run" / "bad.0.jsonl").read_text().splitlines()]
    assert len(named) >= 1
    assert all(each["key"].startswith("00000.tar") and each["reason"] for each in named)
    assert final(tmp_path / "run")["bad"] == len(named)
    with pytest.raises(TrainingError, match=r"samples were bad, more than data.max_bad_share = 0.0001 allows; .*bad\.\*\.jsonl"):
        train(tiny("data.max_bad_share=0.0001"), tmp_path / "data", tmp_path / "run", ALONE)


def test_a_worker_that_is_lost_is_an_error_that_keeps_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Trainer.update

    def update(self: Trainer, batch: Any) -> Tensor:
        for child in multiprocessing.active_children():
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
        return real(self, batch)

    monkeypatch.setattr(Trainer, "update", update)
    settings = tiny("data.workers=1", "train.epochs=1", "train.batch=2", "train.chunk=2")  # more batches than are read ahead
    with pytest.raises(RuntimeError, match=r"DataLoader worker"):
        train(settings, data, tmp_path, ALONE)
    assert final(tmp_path)["step"] >= 1
    assert "The last good checkpoint is" in capsys.readouterr().err


def test_a_run_goes_on_only_with_its_own_settings_and_data(data: Path, tmp_path: Path) -> None:
    train(tiny(), data, tmp_path / "run", ALONE, until=1)
    with pytest.raises(CheckpointError, match=r"started with train.lr = 0.003 and is to go on with 0.1; need the same"):
        train(tiny("train.lr=0.1"), data, tmp_path / "run", ALONE)
    make_synthetic(tmp_path / "other", 32)
    with pytest.raises(CheckpointError, match=r"started on 24 pairs and is to go on with 32"):
        train(tiny(), tmp_path / "other", tmp_path / "run", ALONE)
    with pytest.raises(ConfigError, match=r"train.batch is 8 for 3 processes"):
        train(tiny(), data, tmp_path / "run", Place(0, 3, torch.device("cpu")))
    train(tiny("train.log_every=5", "train.chunk=8"), data, tmp_path / "run", ALONE)
    assert final(tmp_path / "run")["step"] == STEPS


def test_a_line_that_a_killed_run_left_unfinished_spoils_no_other(data: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "tra')
    train(tiny(), data, tmp_path, ALONE, until=1)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[0] == '{"event": "tra'
    assert {"started", "train", "saved"} <= {json.loads(line)["event"] for line in lines[1:]}


# Batches, devices, precision


def gloo(rank: int, world: int, port: int, work: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    work(*arguments)


def ranks(world: int, work: Callable[..., None], *arguments: Any) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return finished(*(in_process(gloo, rank, world, port, work, *arguments) for rank in range(world)))


def command_line(log: Path, *arguments: str) -> None:
    """The program, with what it prints in a file of the first rank's."""
    name = log if os.environ.get("RANK", "0") == "0" else log.with_suffix(".other")
    with name.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        command.main(arguments)


@pytest.mark.parametrize("name", ["otter", "distillation"])
def test_chunks_and_processes_change_no_weight(name: str, data: Path, tmp_path: Path) -> None:
    """Global batches of 8: at once, in chunks of 2, and over 2 processes in chunks of 2."""
    numbers = {}
    for case, chunk, world in (("at once", 8, 1), ("in chunks", 2, 1), ("two processes", 2, 2)):
        settings = [
            word for each in (*EXACT, f"train.chunk={chunk}", "train.lr=0.02", "data.workers=0") for word in ("--set", each)
        ]
        words = ["train", name, "dry_run", "tiny", "--data", str(data), "--run", str(tmp_path / case), *settings]
        assert ranks(world, command_line, tmp_path / f"{case}.txt", *words) == [0] * world, (tmp_path / f"{case}.txt").read_text()
        state = final(tmp_path / case)
        numbers[case] = tensors({key: state[key] for key in ("model", "teacher")})
        assert state["step"] == STEPS
        assert state["seen"] == STEPS * 8
    start = tensors({"model": Trainer(tiny(*EXACT, names=(name,)), ALONE, 24, 6).model.state_dict()})
    whole = numbers.pop("at once")
    moved = {key for key in start if relative(whole[key], start[key]) > 1e-3}
    assert len(moved) > 20
    for case, found in numbers.items():
        for key, expected in whole.items():
            assert relative(found[key].double(), expected.double(), floor=1e-3) < 1e-3, (case, key)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_and_its_scaler_is_saved(precision: str, data: Path, tmp_path: Path) -> None:
    settings = tiny(f"train.precision={precision}")
    train(settings, data, tmp_path / "at once", ALONE, until=4)
    for until in (2, 4):
        train(settings, data, tmp_path, ALONE, until)
    state = final(tmp_path)
    assert_same_to_the_bit(state, final(tmp_path / "at once"))
    assert ("scale" in state["scaler"]) == (precision == "fp16")
    assert state["teacher"]["average.n_averaged"] <= 1 + state["step"]
    assert [math.isfinite(line["loss"]) for line in events(tmp_path, "train")] == [True] * 4


# The dry run


def test_a_dry_run_of_the_papers_configuration_over_two_processes(tmp_path: Path) -> None:
    """ResNet-50, and a BERT of one layer: the paper's own takes its time on a CPU."""
    words = ["train", "otter", "--dry-run", "--run", str(tmp_path / "dry")]
    smaller = [
        "data.workers=0",
        "train.save_every=9",
        "model.text_config={vocab_size = 512, num_hidden_layers = 1, intermediate_size = 64}",
    ]
    words += [word for each in smaller for word in ("--set", each)]
    assert ranks(2, command_line, tmp_path / "said.txt", *words) == [0, 0], (tmp_path / "said.txt").read_text()
    said = (tmp_path / "said.txt").read_text()
    assert said.count("torchrun --nproc-per-node 8 -m benchmarks.reproduction train otter") == 1
    assert "derived, not measured" in said
    assert "goi hit@1 29.1" in said
    assert "trained, stopped, went on, evaluated" in said
    run = tmp_path / "dry" / "run"
    assert [(line["step"], line["processes"]) for line in events(run, "started")] == [(0, 2), (2, 2)]
    lines = events(run, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["images_per_second"] > 0 and math.isfinite(line["loss"]) for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx([3e-3 * 0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)])
    assert all(line["given"] == pytest.approx(0.5) and line["transported"] > 0 for line in events(run, "targets"))
    assert len(events(run, "finished")) == 1
    assert find_spec("tensorboard") is None or list((run / "tensorboard").glob("events.*"))
    assert len(list((tmp_path / "dry" / "results").glob("goi-*.json"))) == 1
    model, settings = checkpoint.load_model(run)
    assert (settings.model.image, settings.model.width) == ("resnet50.ram_in1k", 768)
    teacher, _ = checkpoint.load_model(run, teacher=True)
    weights = zip(model.parameters(), teacher.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in weights)


def test_the_command_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"ConfigError: train needs --data and --run; --dry-run does without"):
        command.main(["train", "otter"])
    with pytest.raises(SystemExit, match=r"no configuration 'oter'"):
        command.main(["train", "oter", "--data", "nowhere", "--run", "nowhere"])
    with pytest.raises(SystemExit, match="0"):
        command.main(["train", "--help"])
    assert "a run that is there goes on" in " ".join(capsys.readouterr().out.split())
