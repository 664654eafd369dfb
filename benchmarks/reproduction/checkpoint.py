"""Checkpoints that survive: whole or not there, the one before kept, read without running what they hold.

A checkpoint is written beside its place, flushed to the disk and only then given its name, ``STEP.pt``; then all but the newest
`KEPT` are removed. So whenever a process is killed the folder holds a whole checkpoint, once there was one. It is a dict of plain
values and tensors::

    format, step, config, text_config, pairs, model, teacher (or None), optimizer, scaler, seen, bad, versions

The position in the data follows from `step`, and so do the random numbers of a step (see `train.seed_step`): no generator's state
is needed to go on to the bit.
"""

import os
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduction.config import Config, ModelConfig
from benchmarks.reproduction.models import PairModel

FORMAT = 1
KEPT = 2
NAME = re.compile(r"\d{8}\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read."""


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Writes the state of a run as the checkpoint of its step; needs room for one more than is kept.

    Raises:
        CheckpointError: the disk is full or refuses; what was there before is still there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = save(Path(folder), {"step": 20, "model": {"weight": torch.ones(2)}})
        ...     path.name, read(path)["step"]
        ('00000020.pt', 20)
    """
    path = folder / f"{state['step']:08d}.pt"
    beside = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush(folder)
    except (OSError, RuntimeError) as error:  # torch's writer turns the first into the second
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint {path} could not be written: {error}. {_free(folder)} are free. {kept(folder)}"
        ) from error
    for old in (*folder.glob("*.part"), *found(folder)[KEPT:]):
        old.unlink(missing_ok=True)
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints in the folder, newest first."""
    return sorted((path for path in folder.glob("*.pt") if NAME.fullmatch(path.name)), reverse=True)


def kept(folder: Path) -> str:
    """A sentence about the newest one."""
    paths = found(folder)
    return f"The last good checkpoint is {paths[0]}." if paths else f"There is no checkpoint in {folder} yet."


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        CheckpointError: there is none, or what is there is damaged, unsafe or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the reader
        raise CheckpointError(f"the checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this program, or of another version; need format {FORMAT}.")
    return state


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None where there is none at all. One that cannot is warned about.

    Raises:
        CheckpointError: none of those that are there can be read.
    """
    paths = found(folder)
    for index, path in enumerate(paths):
        try:
            return read(path)
        except CheckpointError as error:
            if index == len(paths) - 1:
                raise
            warnings.warn(f"{error}. Taking the one before.", stacklevel=2)
    return None


def load_model(path: Path, teacher: bool = False) -> tuple[PairModel, Config]:
    """The model of a checkpoint, in eval mode on the CPU, and the settings it was trained with.

    Args:
        path: a checkpoint; or a run's folder, or that of its checkpoints, for the newest.
        teacher: the average of the weights instead of the weights.

    Raises:
        CheckpointError: there is no checkpoint, or it has no teacher.
    """
    state = _state(path)
    config = Config.from_dict(state["config"])
    weights = state["model"]
    if teacher:
        if state["teacher"] is None:
            raise CheckpointError(f"{path} was trained without a teacher; need one of a loss that has one, as OTTER.")
        prefix = "average.module."
        weights = {name.removeprefix(prefix): value for name, value in state["teacher"].items() if name.startswith(prefix)}
    model = PairModel(architecture(state))
    model.load_state_dict(weights)
    return model.eval(), config


def architecture(state: dict[str, Any]) -> ModelConfig:
    """Settings of the same model with random weights, for which nothing is downloaded."""
    return replace(Config.from_dict(state["config"]).model, pretrained=False, text_config=state["text_config"])


def _state(path: Path) -> dict[str, Any]:
    if path.is_file():
        return read(path)
    for folder in (path, path / "checkpoints"):
        state = newest(folder)
        if state is not None:
            return state
    raise CheckpointError(f"there is no checkpoint in {path}; need a run's folder, or one of its checkpoints.")


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"
    return "unknown amounts"


def _flush(folder: Path) -> None:
    """Makes a file's new name last, where the system can open a folder."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
