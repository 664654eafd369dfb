"""Training of the reproduction: batches, devices, precision, and a dry run over two processes."""

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import checkpoint
from benchmarks.reproduction.train import train
from benchmarks.reproduction.trainer import Trainer
from tests.helpers.checks import relative

from .runs import ALONE, STEPS, assert_same_to_the_bit, command_line, events, final, ranks, tensors, tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]
EXACT = ["model.image=test_vit.r160_in1k", "model.text_config.hidden_dropout_prob=0.0"]
EXACT += ["model.text_config.attention_probs_dropout_prob=0.0"]
"""No BatchNorm and no dropout: what does not depend on how a batch is cut."""


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
    assert all(line["mass_off_pair"] == pytest.approx(0.5) and line["effective_matches"] > 1 for line in events(run, "targets"))
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
