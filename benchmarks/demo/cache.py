"""Arrays kept on disk between runs. A file that is missing, foreign or damaged is made anew."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Arrays = dict[str, NDArray[np.float16]]


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
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
    except (OSError, SafetensorError):
        return None
    intact = metadata == {"fingerprint": fingerprint, "digest": _digest(arrays)}
    return arrays if intact else None


def _write(path: Path, fingerprint: str, arrays: Arrays) -> None:
    """Written beside the target and then moved, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(arrays, metadata={"fingerprint": fingerprint, "digest": _digest(arrays)})
    with NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _digest(arrays: Mapping[str, NDArray[np.float16]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
