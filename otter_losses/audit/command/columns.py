"""Captions, keys and paths of pictures: a list of texts, one a pair, from a file or a column of it."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from otter_losses.audit.command.files import Source, find, optional

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".npy", ".npz")

CAPTIONS = ("caption", "captions", "text", "title", "TEXT")
KEYS = ("key", "keys", "uid", "__key__")
PICTURES = ("image_path", "image", "images", "path", "filepath")


def read_column(argument: str, given: str, usual: Sequence[str], pairs: int) -> list[str]:
    """Of a length that is the number of pairs. Without a name the column is one with a usual name, or the only one.

    Raises:
        InputError: there is no such file or column, it cannot be read, or has another length.
        ImportError: the package that reads it is not installed.
    """
    source = find(argument, given, KINDS)
    entries: list[str] = []
    for file in source.files:
        with source.reading(file):
            entries += _read(source, file, usual)
    if len(entries) != pairs:
        raise source.refuse(
            Path(given), f"has {len(entries)} entries and image_features {pairs} rows", "one a pair, in the order of the rows."
        )
    return entries


def _read(source: Source, file: Path, usual: Sequence[str]) -> list[str]:
    match source.kind:
        case ".txt":
            with file.open(encoding="utf-8-sig", newline="\n") as lines:  # captions may hold the other line ends of Unicode
                return [line.rstrip("\r\n") for line in lines]
        case ".csv" | ".tsv":
            return _separated(source, file, usual)
        case ".jsonl":
            return _objects(source, file, usual)
        case ".parquet":
            parquet = optional("pyarrow.parquet", file)
            names = parquet.read_schema(file).names
            name = source.choose(file, names, usual)
            return [_text(value) for value in parquet.read_table(file, columns=[name]).column(0).to_pylist()]
        case _:
            array = np.load(file, allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                with array:
                    array = array[source.choose(file, array.files, usual)]
            if array.ndim != 1 or array.dtype.kind not in "USiu":
                raise source.refuse(file, f"has shape {array.shape} and dtype {array.dtype}", "(N,) texts or whole numbers.")
            return [_text(value) for value in array.tolist()]


def _separated(source: Source, file: Path, usual: Sequence[str]) -> list[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t" if source.kind == ".tsv" else ",", strict=True)
        header = next(rows, [])
        place = header.index(source.choose(file, header, usual))
        entries = []
        for row in filter(None, rows):
            if len(row) != len(header):
                raise source.refuse(file, f"has {len(row)} fields in line {rows.line_num}", f"{len(header)}, as in its header.")
            entries.append(row[place])
    return entries


def _objects(source: Source, file: Path, usual: Sequence[str]) -> list[str]:
    entries: list[str] = []
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entry = entry[source.choose(file, list(entry), usual)]
            if isinstance(entry, (dict, list)):
                raise source.refuse(file, f"has {type(entry).__name__} in line {number}", "texts or numbers.")
            entries.append(_text(entry))
    return entries


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)
