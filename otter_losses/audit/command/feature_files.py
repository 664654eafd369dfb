"""Features from files: npy and npz, mapped where they can be, safetensors and parquet."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from otter_losses.audit.command.files import InputError, Source, find, optional
from otter_losses.audit.features import Features

KINDS = (".npy", ".npz", ".safetensors", ".parquet")


def read_features(argument: str, given: str) -> Features:
    """(N, D), floating. One npy file, or one array of an npz that is not compressed, stays on the disk; the rest is read.

    Raises:
        InputError: there is no such file, it cannot be read, or holds no such features.
        ImportError: the package that reads it is not installed.
    """
    source = find(argument, given, KINDS)
    parts = [_read(source, file) for file in source.files]
    for file, part in zip(source.files, parts, strict=True):
        if part.ndim != 2 or part.shape[1] == 0:
            raise source.refuse(file, f"has shape {tuple(part.shape)}", "(N, D), one row a pair.")
        if isinstance(part, np.ndarray) and part.dtype not in (np.float16, np.float32, np.float64):
            raise source.refuse(
                file, f"has dtype {part.dtype}", "float16, float32 or float64. Convert: features.astype('float32')."
            )
        if isinstance(part, torch.Tensor) and part.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise source.refuse(
                file, f"has dtype {part.dtype}", "float64, float32, float16 or bfloat16. Convert: features.float()."
            )
        if part.shape[1] != parts[0].shape[1]:
            raise source.refuse(
                file, f"has {part.shape[1]} columns and {source.files[0].name} {parts[0].shape[1]}", "one width in all."
            )
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    return torch.cat(tensors) if tensors else np.concatenate(parts)


def _read(source: Source, file: Path) -> Features:
    with source.reading(file):
        match source.kind:
            case ".npy":
                array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
                return array
            case ".npz":
                return _array(source, file)
            case ".safetensors":
                with optional("safetensors", file).safe_open(file, framework="pt") as tensors:
                    tensor: torch.Tensor = tensors.get_tensor(source.choose(file, list(tensors.keys())))
                    return tensor
            case _:
                return _lists(source, file)


def _array(source: Source, file: Path) -> NDArray[Any]:
    """One array of an npz file, mapped if it is stored as it is."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        entry = archive.getinfo(source.choose(file, names) + ".npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            with archive.open(entry) as member:
                return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
        raw.seek(entry.header_offset + 26)  # where a local header tells the lengths of its name and of its extra field
        raw.seek(int.from_bytes(raw.read(2), "little") + int.from_bytes(raw.read(2), "little"), 1)
        version = np.lib.format.read_magic(raw)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(raw)
        if dtype.hasobject:
            raise InputError(f"{source.argument}: {file} holds Python objects; need an array of numbers.")
        return np.memmap(file, dtype, "r", raw.tell(), shape, "F" if fortran else "C")


def _lists(source: Source, file: Path) -> NDArray[Any]:
    """A column of lists of one length."""
    table, count = optional("pyarrow.parquet", file).ParquetFile(file), optional("pyarrow.compute", file).list_value_length
    lists = [field.name for field in table.schema_arrow if "list" in str(field.type)]
    name = source.choose(file, lists)
    blocks: list[NDArray[Any]] = []
    first = 0
    for batch in table.iter_batches(columns=[name]):
        column = batch.column(0)
        lengths = np.asarray(count(column).fill_null(-1))
        width = blocks[0].shape[1] if blocks else int(lengths[0])
        if odd := np.flatnonzero(lengths != width)[:1].tolist():
            came = "null" if lengths[odd[0]] < 0 else f"{lengths[odd[0]]} numbers"
            raise source.refuse(file, f"has {came} in row {first + odd[0]} of {name!r}", f"{width}, as in row 0.")
        blocks.append(np.asarray(column.flatten()).reshape(-1, width))
        first += len(column)
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
