"""A kernel's tile is chosen once, by trial, and remembered; and it can be left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is there on Linux only")

from otter_losses.ops import cache
from otter_losses.ops.triton import autotune
from otter_losses.ops.triton.launch import Tile

CHOICES = tuple({"BM": rows, "BN": 64, "num_warps": 4} for rows in (8, 16, 32))
SPEED = {8: 3.0, 16: 1.0, 32: 2.0}


class Block:
    """As much of a matrix on a GPU as the choice looks at."""

    is_cuda, device, dtype = True, torch.device("cuda", 0), torch.float32


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The tiles that were timed."""
    timed: list[int] = []

    def milliseconds(run: autotune.Run, tile: Tile) -> float:
        timed.append(tile["BM"])
        run(tile)
        return SPEED[tile["BM"]]

    class Guard:
        def __init__(self, device: torch.device) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(autotune, "_milliseconds", milliseconds)
    monkeypatch.setattr(autotune, "_by_device", {})
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(autotune, "_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("OTTER_LOSSES_AUTOTUNE", raising=False)
    return timed


def choose(name: str = "statistics", rows: int = 4096, columns: int = 4096, tries: bool = True) -> int:
    block: Any = Block()
    return autotune.fastest(name, block, (rows, columns), CHOICES, (lambda tile: None) if tries else None)["BM"]


def test_the_fastest_is_taken_and_remembered(trials: list[int]) -> None:
    assert choose() == 16
    assert trials == [8, 16, 32]
    assert choose(tries=False) == 16
    assert choose(rows=2048) == 16
    assert choose(columns=3000) == 16
    assert len(trials) == 3
    assert choose(columns=8192) == 16
    assert choose(name="logits_gradient") == 16
    assert len(trials) == 9


def test_another_process_reads_what_was_chosen(trials: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    choose()
    monkeypatch.setattr(autotune, "_by_device", {})
    assert choose(tries=False) == 16
    assert len(trials) == 3


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"a": "b"}', b"\xff\xfe"])
def test_a_file_that_makes_no_sense_is_ignored(trials: list[int], content: bytes) -> None:
    cache.store(autotune._file("Some GPU"), content)
    assert choose() == 16
    assert len(trials) == 3


def test_a_folder_that_cannot_be_written_is_no_obstacle(trials: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", f"{__file__}/no/folder")
    assert choose() == 16
    assert choose() == 16
    assert len(trials) == 3


def test_a_tile_that_cannot_be_launched_is_left_out(trials: list[int]) -> None:
    def run(tile: Tile) -> None:
        if tile["BM"] == 16:
            raise RuntimeError("out of resource: shared memory")

    block: Any = Block()
    assert autotune.fastest("statistics", block, (4096, 4096), CHOICES, run)["BM"] != 16
    with pytest.raises(RuntimeError, match="out of resource"):
        autotune.fastest("other", block, (4096, 4096), [CHOICES[1], CHOICES[1]], run)


@pytest.mark.parametrize("reason", ["environment", "deterministic", "capture", "no trial"])
def test_without_a_trial_it_is_the_first(trials: list[int], monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "environment":
        monkeypatch.setenv("OTTER_LOSSES_AUTOTUNE", "0")
    if reason == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    if reason == "capture":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(tries=reason != "no trial") == 8
    assert trials == []


def test_small_blocks_take_the_last_without_a_trial(trials: list[int]) -> None:
    assert choose(rows=16) == 32
    assert trials == []


def test_sizes_with_one_choice_leave_what_is_known(trials: list[int]) -> None:
    block: Any = Block()
    assert choose() == 16
    assert autotune.fastest("statistics", block, (4001, 4001), CHOICES[2:], lambda tile: None)["BM"] == 32
    assert choose(tries=False) == 16
    assert len(trials) == 3


def test_on_a_cpu_there_is_nothing_to_time(trials: list[int]) -> None:
    block, shape = torch.zeros(1, 1), (4096, 4096)
    assert autotune.fastest("statistics", block, shape, CHOICES, lambda tile: None) == CHOICES[-1]
    assert trials == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from otter_losses import OTTERLoss

    monkeypatch.setattr(autotune, "_by_device", {})
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", str(tmp_path))
    x, y = torch.nn.functional.normalize(torch.randn(2, 3072, 64, device="cuda"), dim=-1).to(torch.bfloat16)
    value = OTTERLoss(backend="triton")(x.requires_grad_(), y.requires_grad_(), 14.3)
    value.backward()
    (known,) = autotune._by_device.values()
    assert {name.split()[0].strip(",") for name in known} == {
        "encode",
        "row_scalings",
        "column_sums",
        "statistics",
        "logits_gradient",
    }
    torch.testing.assert_close(value, OTTERLoss(backend="torch")(x, y, 14.3), rtol=1e-5, atol=0)
