"""An audit that is killed goes on where it was; blocks of other audits are refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_losses.audit import features, neighbours, pair_trust, search
from otter_losses.audit.kept import Kept
from tests.audit.test_pair_trust import same
from tests.helpers.mismatched import mismatched
from tests.helpers.paths import ROOT

PAIRS, BLOCK, KILLED_AT = 500, 64, 5

KILLED = f"""
import os, signal, sys
from otter_losses.audit import features, neighbours, pair_trust
from tests.helpers.mismatched import mismatched
neighbours.BLOCK_ROWS = {BLOCK}
done = 0
def told(stage, rows, total):
    global done
    done += stage.startswith("search")
    if done > {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
pair_trust(*mismatched({PAIRS}, 0.3)[:2], progress=told, resume=sys.argv[1])
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", BLOCK)


def audit(folder: Path, **options: Any) -> Any:
    images, texts, _ = mismatched(PAIRS, 0.3)
    return pair_trust(images, texts, resume=folder, **options)


def test_killed_audit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kept"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=environment, cwd=ROOT, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    finished = {path.name for path in folder.glob("*.npy")}
    assert len(finished) == KILLED_AT + 1
    searched = []
    original = search.nearest

    def counting(*arguments: Any, **options: Any) -> Any:
        searched.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(neighbours, "nearest", counting)
    resumed = audit(folder)
    blocks = 2 * -(-PAIRS // BLOCK)
    assert len(searched) == blocks - len(finished)
    assert same(resumed, pair_trust(*mismatched(PAIRS, 0.3)[:2]))
    searched.clear()
    assert same(audit(folder), resumed)
    assert not searched


def test_killed_while_a_block_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = audit(tmp_path / "whole")

    def dying(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            audit(folder)
    assert not list(folder.glob("*.npy"))
    assert same(audit(folder), expected)


def test_other_memory_goes_on(tmp_path: Path) -> None:
    expected = audit(tmp_path)
    assert same(audit(tmp_path, max_memory=1 << 30), expected)
    assert same(audit(tmp_path, seed=0), expected)


@pytest.mark.parametrize(
    ("options", "what"), [({"k": 19}, "k"), ({"components": 12}, "features"), ({"shards": 2}, "shards"), ({"seed": 1}, "seed")]
)
def test_folder_of_other_options_is_refused(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    audit(tmp_path)
    with pytest.raises(ValueError, match=f"the folder of another audit, which differs in {what}; need the same features"):
        audit(tmp_path, **options)


def test_folder_of_other_features_is_refused(tmp_path: Path) -> None:
    audit(tmp_path)
    images, texts, _ = mismatched(PAIRS, 0.3)
    images[17, 3] += 1
    with pytest.raises(ValueError, match="which differs in features"):
        pair_trust(images, texts, resume=tmp_path)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.npy").touch()
    with pytest.raises(ValueError, match=r"holds arrays and no audit\.json; need a folder of a killed audit, or an empty one"):
        audit(tmp_path)


def test_blocks_are_those_of_the_features() -> None:
    assert features.BLOCK_ROWS == 4096
    assert torch.equal(Kept(None, {})("block", lambda: torch.ones(2)), torch.ones(2))
