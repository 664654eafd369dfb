"""The command from files to report: what it writes, how it goes on, what it refuses, and what it says meanwhile."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_losses.audit import pair_trust
from otter_losses.audit.__main__ import main
from otter_losses.audit.command.arguments import parser
from otter_losses.audit.command.progress import Progress
from otter_losses.integrations.pair_values import PairValues
from tests.helpers.audits import save_topics
from tests.helpers.paths import ROOT

OPTIONS = ["--k", "5", "--components", "8"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images.npy, texts.npy and captions.txt."""
    save_topics(tmp_path)
    (tmp_path / "captions.txt").write_text("".join(f"caption {row}\n" for row in range(240)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*more: str, out: str = "report") -> list[str]:
    return ["images.npy", "texts.npy", "--out", out, *OPTIONS, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_written_is_what_pair_trust_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = save_topics(folder)
    assert main(command("--captions", "captions.txt")) == 0
    images, texts = (torch.from_numpy(np.load(f"{name}.npy")) for name in ("images", "texts"))
    expected = pair_trust(images, texts, k=5, components=8)
    np.testing.assert_array_equal(np.load("report/trust.npy"), expected.trust.numpy())
    kept = np.load("report/keep_rows.npy")
    assert kept.tolist() == (expected.trust >= 0.5).nonzero().flatten().tolist()
    assert set(expected.score.argsort()[: len(wrong) // 2].tolist()) <= set(wrong)
    summary = json.loads(Path("report/summary.json").read_text())
    assert summary["wrong_share"] == expected.wrong_share
    assert summary["wrong_share_interval"] == list(expected.wrong_share_interval)
    assert (summary["pairs"], summary["kept"]) == (240, len(kept))
    assert summary["options"]["k"] == 5
    assert {*contents(folder / "report")} == {
        *("trust.npy", "alpha.npy", "suspicious.csv", "duplicates.csv", "keep_rows.npy", "summary.json", "report.html")
    }
    said = capsys.readouterr()
    assert said.out.startswith("240 pairs, about ")
    assert said.out.count("\n") == 1


def test_alphas_are_what_the_losses_and_open_clips_loaders_take(folder: Path) -> None:
    save_topics(folder)
    Path("keys.txt").write_text("".join(f"{7 * row % 240:05}\n" for row in range(240)))
    assert main(command("--keys", "keys.txt")) == 0
    in_order, by_key = (PairValues("alpha", f"report/alpha.{kind}") for kind in ("npy", "npz"))
    assert torch.equal(in_order.values, 0.05 + 0.45 * torch.from_numpy(np.load("report/trust.npy")))
    for row in range(0, 240, 17):
        assert by_key.values[by_key.place(f"{7 * row % 240:05}")] == in_order.values[row]


def test_keys_that_name_several_pairs_have_no_alphas_by_key(folder: Path) -> None:
    save_topics(folder)
    Path("keys.txt").write_text("again\n" * 240)
    assert main(command("--keys", "keys.txt")) == 0
    assert not Path("report/alpha.npz").exists()
    assert len(np.load("report/alpha.npy")) == 240


def test_the_same_command_again_finds_its_audit_finished(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command()) == 0
    before = contents(folder / "report")
    monkeypatch.setattr("otter_losses.audit.__main__.pair_trust", None)
    assert main(command()) == 0
    assert contents(folder / "report") == before
    assert "this audit is finished" in capsys.readouterr().err


def test_a_result_of_another_version_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command()) == 0
    monkeypatch.setattr("otter_losses.audit.__main__.__version__", "99.0")
    assert "otter_losses" in refused(command(), capsys)


def test_a_finished_audit_takes_other_thresholds_and_captions_without_another_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command()) == 0
    monkeypatch.setattr("otter_losses.audit.__main__.pair_trust", None)
    assert main(command("--keep-share", "0.25", "--captions", "captions.txt", "--top", "7")) == 0
    assert len(np.load("report/keep_rows.npy")) == 60
    assert "The 7 most suspicious pairs" in Path("report/report.html").read_text()


KILLED = """
import os, signal, sys
from otter_losses.audit import __main__ as command

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def progress(self, stage, done, total):
    if stage == sys.argv[1]:
        killed()

if sys.argv[1] == "write_page":
    command.write_page = killed
else:
    command.Progress.__call__ = progress
command.main(sys.argv[2:])
"""


@pytest.mark.parametrize("where", ["fingerprint text_features", "search images", "search texts", "write_page"])
def test_killed_anywhere_the_same_command_goes_on(where: str, folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, where, *command()], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not Path("report/summary.json").exists()
    assert main(command()) == 0
    assert main(command(out="whole")) == 0
    assert contents(folder / "report") == contents(folder / "whole")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()[-1].removeprefix("error: ")


def other_features() -> None:
    save_topics(Path(), seed=1)


@pytest.mark.parametrize(
    ("change", "more", "named"),
    [
        (None, ["--seed", "4"], "seed 0 there and 4 here"),
        (None, ["--no-common-space"], "common_space None there and False here"),
        (other_features, [], "image_features "),
    ],
)
def test_another_audit_of_the_folder_is_refused(
    change: Callable[[], None] | None, more: list[str], named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    before = contents(folder / "report")
    if change:
        change()
    said = refused(command(*more), capsys)
    assert said.startswith(f"--out is report, which holds another audit ({named}")
    assert said.endswith("need a folder for each. Choose another, or delete that one.")
    assert contents(folder / "report") == before


def test_other_files_are_not_mixed_with_an_audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "which holds other files (captions.txt, images.npy, texts.npy); need" in refused(command(out="."), capsys)
    assert refused(command(out="images.npy"), capsys).startswith("--out is images.npy, a file; need a folder.")


def test_features_that_were_refused_and_mended_are_taken_in_the_same_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = np.load("texts.npy")
    np.save("texts.npy", np.where(np.arange(240)[:, None] == 17, np.nan, features))
    assert "text_features has NaN or infinity in row 17; need finite features." in refused(command(), capsys)
    np.save("texts.npy", features)
    assert main(command()) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images.npy", "none.npy"], "text_features is 'none.npy'; there is no such file or folder. Check the path."),
        (
            ["images.npy", "short.npy"],
            "image_features has 240 rows and text_features 239; need the same: row i of both is pair i.",
        ),
        (
            ["images.npy", "texts.npy", "--keys", "k.txt"],
            "--keys: k.txt has 3 entries and image_features 240 rows; need one a pair",
        ),
        (["images.npy", "texts.npy", "--k", "100"], "there are 240 pairs, and k is 100; need at least 400 pairs"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("short.npy", np.load("texts.npy")[:-1])
    Path("k.txt").write_text("a\nb\nc\n")
    assert refused([*arguments, "--out", "report"], capsys).startswith(said)
    assert not Path("report/summary.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--k", "0", "is '0'; need a whole number of at least 1."),
        ("--k", "2.5", "is '2.5'; need a whole number of at least 1."),
        ("--keep", "1.2", "is '1.2'; need a number from 0 to 1."),
        ("--keep-share", "nan", "is 'nan'; need a number from 0 to 1."),
        ("--max-memory", "2 parsecs", "is '2 parsecs'; need a size above 0, as 2GiB, 500MB or a number of bytes."),
        ("--max-memory", "0", "is '0'; need a size above 0"),
        ("--device", "warp", "is 'warp', which cannot be used"),
    ],
)
def test_an_option_that_cannot_be_taken_is_named(option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["images.npy", "texts.npy", "--out", "report", option, value])
    assert ended.value.code == 2
    assert f"error: argument {option}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "size"), [("2GiB", 2 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("64K", 65536), ("123456", 123456)]
)
def test_sizes(given: str, size: int) -> None:
    assert parser().parse_args(["a", "b", "--out", "c", "--max-memory", given]).max_memory == size


def test_paths_of_pictures_may_be_relative_to_the_file_that_lists_them(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.png").write_bytes(b"no picture")
    (folder / "data" / "paths.txt").write_text("a.png\n" * 240)
    assert main(command("--images", "data/paths.txt", "--top", "3")) == 0
    page = Path("report/report.html").read_text()
    assert page.count("a.png<br>cannot be read") == 3


def test_a_user_who_stops_it_is_told_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("otter_losses.audit.__main__.pair_trust", stopped)
    assert main(command()) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; the same command goes on from here."


def test_a_device_without_enough_memory_is_answered_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("otter_losses.audit.__main__.pair_trust", full)
    assert refused(command(), capsys).startswith("there is not enough memory; give --max-memory")


def test_it_runs_as_a_module(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "otter_losses.audit", *command()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "search texts: done in" in ended.stderr


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_five_seconds_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), io.StringIO()
    progress = Progress(log)
    for done in range(0, 101, 10):
        progress("search images", done, 100)
        clock.now += 3
    progress("search texts", 50, 100)  # half was there from an earlier run
    clock.now += 10
    progress("search texts", 60, 100)
    progress.close()
    assert log.getvalue().splitlines() == [
        "search images: 20 %, 24 s left",
        "search images: 40 %, 18 s left",
        "search images: 60 %, 12 s left",
        "search images: 80 %, 6 s left",
        "search images: 100 %, 0 s left",
        "search images: done in 33 s",
        "search texts: 60 %, 40 s left",
        "search texts: done in 10 s",
    ]


def test_a_terminal_sees_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(monkeypatch), Terminal()
    progress = Progress(terminal)
    progress("read", 0, 2)
    clock.now += 1
    progress("read", 1, 2)
    progress("read", 0, 2)  # of the texts
    progress.close()
    line = "\r{}\x1b[K"
    assert terminal.getvalue() == "\n".join(
        [line.format("read: 50 %, 1 s left") + line.format("read: done in 1 s"), line.format("read: done in 0 s"), ""]
    )
