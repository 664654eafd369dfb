"""Tiny runs of the reproduction's training, in this process and in others, and what they leave."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import checkpoint, config
from benchmarks.reproduction.config import Config
from benchmarks.reproduction.place import Place

ALONE = Place(0, 1, torch.device("cpu"))
STEPS = 6


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
