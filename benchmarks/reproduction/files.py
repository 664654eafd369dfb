"""Tables, lists and folders of pictures, as found on disk; and files that are replaced whole."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""Endings of the files that count as pictures."""


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named columns of a CSV with a header, row by row; blanks around headers and fields do not count.

    Raises:
        ValueError: a column is not there, or a row is too short.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(f"{path} needs the columns {', '.join(columns)}, but its first line is {','.join(header)[:200]!r}")
        where = [header.index(name) for name in columns]
        for row in reader:
            if not row:
                continue
            if len(row) <= max(where):
                raise ValueError(f"{path}, line {reader.line_num}: expected {len(header)} fields, got {len(row)}; is it cut off?")
            yield tuple(row[position].strip() for position in where)


def find_pictures(folder: Path, *, by_stem: bool) -> dict[str, Path]:
    """All pictures below a folder by key, sorted.

    Raises:
        ValueError: no folder, no pictures, or two pictures of one key.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder of pictures {folder} is not there")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES):
        key = path.stem if by_stem else without_ending(path.relative_to(folder).as_posix())
        if key in found:
            raise ValueError(f"{path} and {found[key]} have the same key {key!r}: keep one of them")
        found[key] = path
    if not found:
        raise ValueError(f"there is no picture ({', '.join(sorted(PICTURES))}) below {folder}")
    return found


def stem(name: str) -> str:
    """The last part of a path or URL without its ending."""
    return without_ending(name.rsplit("/", 1)[-1])


def without_ending(name: str) -> str:
    """A path without the ending of a picture."""
    base, dot, ending = name.rpartition(".")
    return base if f"{dot}{ending}".lower() in PICTURES else name


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[Any]:
    """A file to write, which is moved to `path` once it is whole and on the disk; after an error all is as it was."""
    encoding = None if "b" in mode else "utf-8"
    with NamedTemporaryFile(mode, dir=path.parent, prefix=f".{path.name}.", delete=False, encoding=encoding) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_lines(path: Path) -> Iterator[str]:
    """The lines that are not blank, without blanks around them."""
    with open(path, encoding="utf-8-sig") as file:
        yield from (line.strip() for line in file if line.strip())
