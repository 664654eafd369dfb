"""Where each pair of a data set lies: one file, written atomically, mapped into memory, checked against the shards."""

import filecmp
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.reproduction.bad import BadSampleError
from benchmarks.reproduction.images import MAX_BYTES

INDEX_NAME = "index.pt"
VERSION = 1


class Entry(NamedTuple):
    """A pair: its picture's name and where its bytes lie in an archive, and its caption. A picture's own file has no place."""

    name: str
    start: int
    length: int
    caption: str


class Texts:
    """Strings in one tensor of bytes, so that millions of them need no Python objects and no copy for each worker."""

    def __init__(self, content: Tensor, ends: Tensor) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def pack(cls, texts: Iterable[str]) -> "Texts":
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        content = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
        return cls(content, torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(0))

    @classmethod
    def join(cls, parts: list["Texts"]) -> "Texts":
        shifts = itertools.accumulate((len(part.content) for part in parts), initial=0)
        ends = [part.ends + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(torch.cat([part.content for part in parts]), torch.cat(ends))

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self.content[start : int(self.ends[index])].numpy()).decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Index:
    """The pairs of a data set.

    Names are relative to `root`. `stamps` (A, 2) holds each archive's size and time of change in nanoseconds; `places` (N, 3)
    holds each pair's archive, start and length. `dropped` counts what `prepare` left out, by reason.
    """

    root: Path
    archives: list[str]
    stamps: Tensor
    places: Tensor
    names: Texts
    captions: Texts
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.places)

    def key(self, number: int) -> str:
        """What names a pair in messages: its file, or its archive and its name there."""
        archive = int(self.places[number, 0])
        name = self.names[number] if archive < 0 else f"{self.archives[archive]}/{self.names[number]}"
        return repr(name)[1:-1]  # printable whatever it holds

    def save(self, path: Path) -> None:
        """Written beside `path`, flushed and moved there: a reader finds the old index or the new one, never a part.

        One that says the same is left alone, so that preparing twice does not disturb who reads it.
        """
        root = "." if self.root.resolve() == path.parent.resolve() else str(self.root.resolve())
        content = {
            "version": VERSION, "root": root, "archives": self.archives, "stamps": self.stamps, "places": self.places,
            "names": (self.names.content, self.names.ends), "captions": (self.captions.content, self.captions.ends),
            "dropped": self.dropped,
        }  # fmt: skip
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                if path.is_file() and filecmp.cmp(file.name, path, shallow=False):
                    os.unlink(file.name)
                else:
                    os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

    @classmethod
    def load(cls, path: Path) -> "Index":
        """The index in `path`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, empty, or of another version of this program.
        """
        prepare = "make it with: python -m benchmarks.reproduction prepare"
        if not path.is_file():
            raise FileNotFoundError(f"no index at {path}; {prepare}")
        try:
            content: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
            version = content["version"]
        except Exception as error:  # torch names neither the file nor one type of error
            raise ValueError(f"the index {path} is damaged ({error}); {prepare}") from error
        if version != VERSION:
            raise ValueError(f"the index {path} is of version {version}, this program reads version {VERSION}; {prepare}")
        index = cls(
            path.parent / content["root"], content["archives"], content["stamps"], content["places"],
            Texts(*content["names"]), Texts(*content["captions"]), content["dropped"],
        )  # fmt: skip
        if not len(index):
            raise ValueError(f"the index {path} has no pairs; it dropped {index.dropped}")
        return index

    def check(self) -> None:
        """Raises ValueError if an archive is gone or is not the one that was indexed."""
        for number, name in enumerate(self.archives):
            try:
                self._check_stamp(number, os.stat(self.root / name))
            except (OSError, BadSampleError) as error:
                raise ValueError(
                    f"{self.root / name} no longer fits its index: {error}. Bring it back, or run prepare again on {self.root}"
                ) from error

    def read(self, number: int) -> bytes:
        """The picture of pair `number` as it lies on disk.

        Raises:
            BadSampleError: it is missing or too large, or its archive has changed.
        """
        archive, start, length = self.places[number].tolist()
        name = self.names[number] if archive < 0 else self.archives[archive]
        try:
            with open(self.root / name, "rb") as file:
                if archive < 0:
                    length = os.fstat(file.fileno()).st_size
                else:
                    self._check_stamp(archive, os.fstat(file.fileno()))
                if length > MAX_BYTES:
                    raise BadSampleError(f"file of {length:,} bytes is over {MAX_BYTES:,}")
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise BadSampleError(f"cannot be read: {error.strerror}") from None

    def _check_stamp(self, archive: int, now: os.stat_result) -> None:
        size, changed = self.stamps[archive].tolist()
        if now.st_size != size:
            raise BadSampleError(f"shard has {now.st_size:,} bytes, {size:,} when it was indexed")
        if now.st_mtime_ns != changed:
            raise BadSampleError("shard was changed since it was indexed")


class Builder:
    """Collects pairs in compact form, an archive (or some thousands of files) at a time."""

    def __init__(self) -> None:
        self.archives: list[str] = []
        self.stamps: list[tuple[int, int]] = []
        self.places: list[Tensor] = [torch.empty(0, 3, dtype=torch.int64)]
        self.names: list[Texts] = [Texts.pack([])]
        self.captions: list[Texts] = [Texts.pack([])]

    def add_archive(self, name: str, stamp: os.stat_result, entries: list[Entry]) -> None:
        """The pairs of an archive as it was at `stamp`."""
        self._add(len(self.archives), entries)
        self.archives.append(name)
        self.stamps.append((stamp.st_size, stamp.st_mtime_ns))

    def add_files(self, entries: list[Entry]) -> None:
        """Pairs whose pictures are files of their own."""
        self._add(-1, entries)

    def finish(self, root: Path, dropped: dict[str, int]) -> Index:
        """The index of all that was added."""
        return Index(
            root, self.archives, torch.tensor(self.stamps, dtype=torch.int64).view(-1, 2), torch.cat(self.places),
            Texts.join(self.names), Texts.join(self.captions), dropped,
        )  # fmt: skip

    def _add(self, archive: int, entries: list[Entry]) -> None:
        places = [(archive, entry.start, entry.length) for entry in entries]
        self.places.append(torch.tensor(places, dtype=torch.int64).view(-1, 3))
        self.names.append(Texts.pack(entry.name for entry in entries))
        self.captions.append(Texts.pack(entry.caption for entry in entries))
