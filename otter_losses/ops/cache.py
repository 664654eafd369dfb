"""Files that make a later start faster: compiled kernels and chosen tiles. All is well without them."""

import hashlib
import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """``OTTER_LOSSES_CACHE_DIR``, or ``otter_losses`` in the user's cache folder."""
    given = os.environ.get("OTTER_LOSSES_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "otter_losses"


def load(name: str) -> bytes | None:
    """What was stored under the name; None where there is nothing, or it is not what was written."""
    try:
        content = (folder() / name).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: no home
        return None
    digest, stored = content[:32], content[32:]
    return stored if hashlib.sha256(stored).digest() == digest else None


def store(name: str, content: bytes) -> None:
    """Store whole or not at all: who reads meanwhile finds the old file or the new one. A folder that refuses is left alone."""
    temporary = None
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, folder() / name)
    except (OSError, RuntimeError):
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
