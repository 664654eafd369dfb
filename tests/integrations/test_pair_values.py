"""A value a pair reaches the loss through open_clip's loaders, loop and training program, with the pair that it belongs to."""

import csv
import gc
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import pytest
import torch
from open_clip_train.train import evaluate, train_one_epoch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from otter_losses import EMATeacher, OTTERLoss, SigLIPLoss
from otter_losses.integrations.open_clip import add_teacher, main
from otter_losses.integrations.pair_values import PairValues, add_pair_values
from tests.helpers.carried import Recorder
from tests.helpers.processes import run
from tests.integrations.test_open_clip import (
    PAIRS,
    RATE,
    TEXT,
    VISION,
    WORDS,
    Step,
    check_same,
    command_in,
    descent,
    differ,
    make_args,
    make_model,
    make_pairs,
)
from tests.integrations.test_open_clip import pytestmark as client

pytestmark = [*client, pytest.mark.filterwarnings(r"ignore:unclosed file.*\.tar:ResourceWarning")]  # webdataset leaves them open

ALPHA = torch.linspace(0.05, 0.5, PAIRS)[torch.tensor([3, 0, 6, 1, 7, 4, 2, 5])]
GROUPS = torch.tensor([0, 1, 0, 2, 3, 1, 4, 4])
KEYS = [f"{(5 * row) % PAIRS:04}" for row in range(PAIRS)]
"""Of the pairs in the shards; in another order than the pairs."""
SHARDS = 4


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What webdataset leaves open is closed here, where the warning is expected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the pairs as a CSV file and as shards, and their values."""
    folder = tmp_path_factory.mktemp("pairs")
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": 49408}}
    (folder / "tiny_otter.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_otter.json")
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as opened:
        shards = [opened.enter_context(tarfile.open(folder / f"{shard}.tar", "w")) for shard in range(SHARDS)]
        table = csv.writer(opened.enter_context(open(folder / "pairs.csv", "w", newline="")))
        table.writerow(["filepath", "title"])
        for row, (key, word) in enumerate(zip(KEYS, WORDS, strict=True)):
            picture = Image.fromarray(torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy())
            picture.save(folder / f"{row}.png")
            table.writerow([folder / f"{row}.png", word])
            for suffix, content in (("png", (folder / f"{row}.png").read_bytes()), ("txt", word.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                shards[row % SHARDS].addfile(member, io.BytesIO(content))
    for name, values in (("alpha", ALPHA), ("groups", GROUPS)):
        np.save(folder / f"{name}.npy", values.numpy())
        arrays: dict[str, Any] = {"keys": np.array(KEYS), name: values.numpy()}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def record(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Recorder:
    """Their training program's calls of the loss, with weights that stay as they are."""
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)  # it would stay set up
    monkeypatch.chdir(folder)  # params.txt is written, logs or none
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny_otter")
    pictures = torch.stack([preprocess(Image.open(folder / f"{row}.png")) for row in range(PAIRS)])
    with torch.no_grad():
        recorder = Recorder(model.encode_image(pictures, normalize=True))
    with patch("otter_losses.integrations.open_clip.create_loss", return_value=recorder):
        main([*command_in(folder, "run", PAIRS // 2), "--epochs", "2", "--lr", "0", "--logs", "none", *arguments])
    return recorder


def from_source(folder: Path, source: str) -> list[str]:
    if source == "csv":
        return ["--train-data", f"{folder}/pairs.csv"]
    shards = f"{folder}/{{0..{SHARDS - 1}}}.tar"
    return ["--train-data", shards, "--dataset-type", "webdataset", "--train-num-samples", str(PAIRS)]


@pytest.mark.parametrize(("source", "suffix"), [("csv", "npy"), ("webdataset", "npz")])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_values_come_with_their_pairs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, suffix: str, workers: int, accumulated: int
) -> None:
    command = ("--workers", str(workers), "--accum-freq", str(accumulated), "--ema-decay", "0.5")
    files = (f"{name}={folder}/{name}.{suffix}" for name in ("alpha", "groups"))
    recorder = record(folder, monkeypatch, *from_source(folder, source), *command, "--otter", "epsilon=0.2", *files)
    assert len(recorder.calls) == 4
    assert all(len(call["rows"]) == accumulated * PAIRS // 2 for call in recorder.calls)
    recorder.check(alpha=ALPHA, groups=GROUPS)


def test_the_batches_are_those_of_a_run_without_values(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CSV file; webdataset's are others every time."""
    without, given = (record(folder, monkeypatch, "--otter", f"alpha={each}") for each in (0.5, f"{folder}/alpha.npy"))
    assert [call["rows"].tolist() for call in without.calls] == [call["rows"].tolist() for call in given.calls]
    assert all(call.keys() == {"rows"} for call in without.calls)


def test_validation_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = ("--val-data", f"{folder}/pairs.csv", "--val-frequency", "1")
    with patch("open_clip_train.main.evaluate", side_effect=evaluate) as evaluated:
        record(folder, monkeypatch, *validation, "--otter", f"alpha={folder}/alpha.npy").check(alpha=ALPHA)
    assert evaluated.call_count == 2


def batches(values: str | None, model: nn.Module, *, rank: int = 0, world: int = 1, count: int = 1, teacher: Any = None) -> Any:
    """Shuffled pairs of this rank, with values from a file."""
    pairs = TensorDataset(*make_pairs())
    sampler: DistributedSampler[Any] = DistributedSampler(pairs, world, rank)
    loader: Any = DataLoader(pairs, PAIRS // world // count, sampler=sampler)
    loader.num_samples, loader.num_batches = PAIRS, count
    data = SimpleNamespace(dataloader=loader, set_epoch=sampler.set_epoch)
    if values is not None:
        add_pair_values(model, data, [PairValues("alpha", values)], teacher)
    return {"train": data}


def step(model: nn.Module, data: Any, teacher: nn.Module | None = None, accumulated: int = 1, **changes: Any) -> Step:
    """What an epoch of one step changes."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    args = make_args("--accum-freq", str(accumulated), distill=teacher is not None, **changes)
    train_one_epoch(model, data, OTTERLoss(), 0, optimizer, None, None, teacher, args)
    changed = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return {name.removeprefix("module.").removeprefix("_orig_mod."): change for name, change in changed.items()}


def by_hand(alpha: Tensor | float, teacher: nn.Module | None = None) -> Step:
    model = make_model()
    output = model(*make_pairs())
    taught = {} if teacher is None else {f"dist_{name}": value.detach() for name, value in teacher(*make_pairs()).items()}
    OTTERLoss()(**output, **taught, alpha=alpha).backward()
    return descent(model)


@pytest.mark.parametrize("kind", ["plain", "compiled", "their teacher", "our teacher"])
def test_their_loop_takes_the_step_of_the_believed_pairs(folder: Path, kind: str) -> None:
    model: Any = make_model()
    teacher = make_model(seed=1) if "teacher" in kind else None
    if kind == "our teacher":
        add_teacher(model, EMATeacher(teacher))  # type: ignore[arg-type]
    compiled: Any = torch.compile(model, backend="eager") if kind == "compiled" else model
    theirs = teacher if kind == "their teacher" else None
    change = step(compiled, batches(f"{folder}/alpha.npy", compiled, teacher=theirs), theirs)
    check_same(change, by_hand(ALPHA, teacher))
    assert differ(change, by_hand(0.5, teacher))


def work(rank: int, world: int, file: str) -> Step:
    model = DistributedDataParallel(make_model())
    data = batches(file, model, rank=rank, world=world, count=2)
    return step(model, data, accumulated=2, rank=rank, world_size=world, distributed=True)


def test_two_processes_take_the_step_of_one(folder: Path, tmp_path: Path) -> None:
    """With accumulation, in which their loop counts the scale's gradient twice."""
    wanted = by_hand(ALPHA)
    wanted["logit_scale"] *= 2
    for change in run(work, 2, tmp_path, str(folder / "alpha.npy")):
        check_same(change, wanted)


def test_a_pair_without_a_value_stops_the_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alpha.npz"
    np.savez(file, keys=np.array([f"pair {key}" for key in KEYS]), alpha=ALPHA.numpy())
    with pytest.raises(
        ValueError, match=r"alpha\.npz has no alpha for the pair '000\d', but for pairs like 'pair 0000'; need one"
    ):
        record(folder, monkeypatch, *from_source(folder, "webdataset"), "--otter", f"alpha={file}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shape.npy": ({"alpha": np.ones((PAIRS, 1))}, r"alpha of shape \(8, 1\); need \(N,\), one value a pair"),
    "none.npy": ({"alpha": np.ones(0)}, r"alpha of shape \(0,\); need \(N,\), one value a pair"),
    "nan.npy": ({"alpha": np.array([0.5, np.nan])}, r"nan\.npy: alpha has values from nan to nan; need numbers in \[0, 1\]"),
    "large.npy": ({"alpha": np.array([0.5, 1.5])}, r"large\.npy: alpha has values from 0\.5 to 1\.5; need numbers in \[0, 1\]"),
    "whole.npy": ({"alpha": np.array([0, 1])}, r"whole\.npy: alpha has dtype torch\.int64; need float64"),
    "words.npy": ({"alpha": np.array(["all", "none"])}, r"words\.npy: can't convert np\.ndarray of type numpy\.str_"),
    "objects.npy": ({"alpha": np.array([0.5, None])}, r"objects\.npy cannot be read; need numbers that numpy\.save"),
    "objects.npz": ({"keys": np.array(["a"]), "alpha": np.array([None])}, r"objects\.npz cannot be read; need numbers"),
    "trust.npz": ({"keys": np.array(["a"]), "trust": np.ones(1)}, r"trust\.npz holds keys, trust; need keys and alpha"),
    "fewer.npz": ({"keys": np.array(["a"]), "alpha": np.ones(2)}, r"keys of shape \(1,\) and <U1; need 2 strings, one for each"),
    "rows.npz": ({"keys": np.arange(2), "alpha": np.ones(2)}, r"keys of shape \(2,\) and int64; need 2 strings"),
    "twice.npz": ({"keys": np.array(["b", "a", "b"]), "alpha": np.ones(3)}, "holds the key 'b' more than once; need each once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_do_not_hold_a_value_a_pair_are_refused_before_the_model_is_built(name: str, tmp_path: Path) -> None:
    arrays, error = REFUSED[name]
    if name.endswith("npz"):
        np.savez(tmp_path / name, **arrays)
    else:
        np.save(tmp_path / name, arrays["alpha"])
    with patch("open_clip_train.main.create_model_and_transforms") as built:
        with pytest.raises((TypeError, ValueError), match=error):
            main(["--model", "tiny_otter", "--otter", f"alpha={tmp_path / name}"])
        built.assert_not_called()


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 'trust\.csv'; need a number, or a file of one value a pair"):
        main(["--model", "tiny_otter", "--otter", "alpha=trust.csv"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npy"):
        main(["--model", "tiny_otter", "--otter", "groups=nowhere.npy"])


def test_files_that_do_not_fit_the_data_set_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "alpha.npy", ALPHA[1:].numpy())
    with pytest.raises(
        ValueError, match=r"alpha\.npy holds alpha of 7 pairs, and the data set has 8; need one a pair, in its order"
    ):
        record(folder, monkeypatch, "--otter", f"alpha={tmp_path}/alpha.npy")
    with pytest.raises(ValueError, match=r"alpha\.npz has keys, and the pairs come from a data set with an order; need a \.npy"):
        record(folder, monkeypatch, "--otter", f"alpha={folder}/alpha.npz")
    with pytest.raises(ValueError, match=r"alpha\.npy has no keys, and the pairs come from webdataset; need a \.npz"):
        record(folder, monkeypatch, *from_source(folder, "webdataset"), "--otter", f"alpha={folder}/alpha.npy")


def test_what_cannot_carry_values_is_refused(folder: Path) -> None:
    model: Any = make_model()
    values = [PairValues("alpha", f"{folder}/alpha.npy")]
    with pytest.raises(TypeError, match=r"the loader is a list; need open_clip's .*loss\(\.\.\., alpha=alpha\[rows\]\)"):
        add_pair_values(model, SimpleNamespace(dataloader=[make_pairs()]), values)
    model.output_dict = False
    with pytest.raises(TypeError, match=r"output is a tuple; need a dict\. Build it with output_dict=True"):
        step(model, batches(f"{folder}/alpha.npy", model))


def test_groups_reach_the_sigmoid_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []
    forward = SigLIPLoss.forward

    def watched(self: SigLIPLoss, *features: Any, **named: Any) -> Any:
        given.append(named["groups"])
        return forward(self, *features, **named)

    monkeypatch.setattr(SigLIPLoss, "forward", watched)
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    monkeypatch.chdir(folder)
    command = [*command_in(folder, "grouped", PAIRS), *from_source(folder, "csv"), "--epochs", "1", "--logs", "none"]
    main([*command, "--siglip", "--otter", f"groups={folder}/groups.npy"])
    assert [tensor.sort().values.tolist() for tensor in given] == [GROUPS.sort().values.tolist()]


@pytest.mark.parametrize(("options", "loss"), [(["--siglip"], "SigLIPLoss"), (["--otter", "loss=InfoNCELoss"], "InfoNCELoss")])
def test_a_loss_that_does_not_take_the_values_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], loss: str
) -> None:
    monkeypatch.setattr("open_clip_train.main.setup_logging", lambda *_: None)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=rf"alpha of 8 pairs from .*alpha\.npy given, but {loss} takes no alpha for each pair"):
        main([*command_in(folder, loss, PAIRS), "--logs", "none", *options, "--otter", f"alpha={folder}/alpha.npy"])
