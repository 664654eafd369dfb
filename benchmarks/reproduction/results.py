"""Result files: one a benchmark and checkpoint, written by ``evaluate`` alone and read by ``table`` alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reproduction.files import replacing

FORMAT = 1
KEYS = frozenset({"format", "benchmark", "scores", "pictures", "model", "versions"})


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all: beside the target, flushed to the disk, then moved over it.

    Raises:
        ValueError: a key is missing, or a number is not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write(Path(folder) / "a.json", dict.fromkeys(KEYS - {"format"}, {}))
        ...     read(Path(folder) / "a.json")["format"]
        1
    """
    result = {"format": FORMAT, **result}
    if missing := KEYS - result.keys():
        raise ValueError(f"a result needs {', '.join(sorted(missing))}")
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text)


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is none, or of another format.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a result of evaluate: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not found.keys() >= KEYS:
        raise ValueError(f"{path} is no result of this version's evaluate (format {FORMAT}); evaluate the checkpoint again")
    return found
