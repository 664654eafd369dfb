"""The command's output folder: whose audit it holds, and what a second run goes on from."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otter_losses.audit.command.files import InputError
from otter_losses.audit.command.progress import Progress
from otter_losses.audit.features import Features
from otter_losses.audit.kept import whole_file
from otter_losses.audit.report import PairTrust
from otter_losses.ops.memory import slices

STATE = "state"
HASHED_BYTES = 1 << 26


def fingerprint(name: str, features: Features, progress: Progress) -> str:
    """Of every number, its type and its place."""
    digest = hashlib.blake2b(f"{features.dtype} {tuple(features.shape)}".encode(), digest_size=16)
    rows = max(1, HASHED_BYTES // (features.shape[1] * features.dtype.itemsize))
    for block in slices(features.shape[0], rows):
        part = features[block]
        array = part.contiguous().view(torch.uint8).numpy() if isinstance(part, torch.Tensor) else np.ascontiguousarray(part)
        digest.update(array.view(np.uint8).data)
        progress(f"fingerprint {name}", block.stop, features.shape[0])
    return digest.hexdigest()


class AuditFolder:
    """A folder that belongs to one audit: of these features, with these options.

    Args:
        path: new, empty, or that of the same audit.
        identity: what makes an audit another one.

    Raises:
        InputError: the folder holds another audit, or anything else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.state = path, path / STATE
        if path.exists() and not path.is_dir():
            raise InputError(f"--out is {path}, a file; need a folder. Choose another.")
        record = self.state / "audit.json"
        if not record.is_file():
            self._check_empty()
        elif self.blocks.is_dir() or self._result.is_file():
            known = json.loads(record.read_text(encoding="utf-8"))
            other = [
                f"{name} {known.get(name)} there and {value} here" for name, value in identity.items() if known.get(name) != value
            ]
            if other:
                raise InputError(
                    f"--out is {path}, which holds another audit ({'; '.join(other)}); need a folder for each. "
                    "Choose another, or delete that one."
                )
        self.state.mkdir(parents=True, exist_ok=True)
        with whole_file(record) as file:
            file.write(json.dumps(dict(identity), indent=1).encode())

    def _check_empty(self) -> None:
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name != STATE) if self.path.exists() else []
        if others:
            raise InputError(
                f"--out is {self.path}, which holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}); "
                "need a new or an empty folder. Choose another."
            )

    @property
    def _result(self) -> Path:
        return self.state / "result.pt"

    @property
    def blocks(self) -> Path:
        """Where a run that is not finished keeps what it has."""
        return self.state / "blocks"

    def result(self) -> PairTrust | None:
        """Of a run that was finished."""
        return PairTrust(**torch.load(self._result, weights_only=True)) if self._result.is_file() else None

    def keep(self, result: PairTrust) -> None:
        with whole_file(self._result) as file:
            torch.save(vars(result), file)
        shutil.rmtree(self.blocks, ignore_errors=True)
