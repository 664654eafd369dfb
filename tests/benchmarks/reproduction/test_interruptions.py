"""Runs that are killed, stopped or spoilt, and go on or keep what was good."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reproduction import checkpoint, objective
from benchmarks.reproduction.checkpoint import CheckpointError
from benchmarks.reproduction.config import ConfigError
from benchmarks.reproduction.place import Place
from benchmarks.reproduction.prepare import make_synthetic
from benchmarks.reproduction.train import STOPPED, TrainingError, train
from benchmarks.reproduction.trainer import Trainer

from .runs import ALONE, STEPS, assert_same_to_the_bit, events, final, finished, in_process, tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]


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
