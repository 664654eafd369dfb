"""Finished blocks kept in a folder, so that a killed audit goes on where it was."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

MANIFEST = "audit.json"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is there when all of it is."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Kept:
    """Blocks by name: computed once, and found again by a later process with the same features and options.

    A block's file gets its name when all of it is on the disk, so that a process killed at any moment leaves whole blocks only.
    """

    def __init__(self, folder: Path | None, audit: dict[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / MANIFEST
        if not manifest.exists():
            if any(folder.glob("*.npy")):
                raise ValueError(
                    f"resume is {str(folder)!r}, which holds arrays and no {MANIFEST}; need a folder of a killed audit, or an "
                    "empty one. Name another."
                )
            with whole_file(manifest) as file:
                file.write(json.dumps(audit, indent=1).encode())
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found != audit:
            other = ", ".join(key for key in audit if found.get(key) != audit[key]) or "version"
            raise ValueError(
                f"resume is {str(folder)!r}, the folder of another audit, which differs in {other}; need the same features and "
                "options. Name another folder, or delete this one."
            )

    def __call__(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path))
        block = compute()
        with whole_file(path) as file:
            np.save(file, block.cpu().numpy())
        return block
