"""Arrays kept on disk between runs. A file that is missing, foreign or damaged is made anew."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def fingerprint(*origin: Any) -> str:
    """Differs wherever what the arrays are made from does."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of installed packages."""
    return {package: version(package) for package in packages}


def load_or_make(path: Path, fingerprint: str, make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """The arrays in `path` if they were made under `fingerprint` and are intact, else `make()`, written to `path`.

    The second value tells whether they came from the cache.
    """
    cached = _load(path, fingerprint)
    if cached is not None:
        return cached, True
    arrays = make()
    _write(path, fingerprint, arrays)
    return arrays, False


def _load(path: Path, fingerprint: str) -> Arrays | None:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # a zip archive checks what it reads
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if str(arrays.pop("fingerprint", "")) == fingerprint else None


def _write(path: Path, fingerprint: str, arrays: Arrays) -> None:
    """Written beside the target and then moved, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"fingerprint": np.array(fingerprint), **arrays}
    with NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        np.savez(file, **content)
    os.replace(file.name, path)
