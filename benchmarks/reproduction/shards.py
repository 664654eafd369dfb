"""Where the pictures and captions lie in a webdataset shard (img2dataset's NNNNN.tar with KEY.jpg, KEY.txt and KEY.json).

Nothing is ever extracted, so nothing is written. What a hostile or damaged archive says is checked before it is believed: links
and devices, absolute names and "..", sizes beyond the file are refused, and reading a header never takes more than 64 KiB.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.reproduction.bad import Bad
from benchmarks.reproduction.captions import clean
from benchmarks.reproduction.images import MAX_BYTES
from benchmarks.reproduction.index import Entry

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_TEXT = 2**16
BLOCK = 512
LONG_NAME, EXTENDED = (tarfile.GNUTYPE_LONGNAME,), (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
IGNORED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """A file in an archive: where its bytes start and how many they are."""

    name: str
    start: int
    length: int


Shard = tuple[list[Entry], os.stat_result, list[Bad]]


def index_shard(path: Path) -> Shard:
    """The pairs of an archive, the archive's size and time, and what in it cannot be used. A cut archive gives what is whole.

    A caption is KEY.txt, or else "caption" in KEY.json.
    """
    pairs: list[Entry] = []
    bad: list[Bad] = []
    file = os.open(path, os.O_RDONLY)
    try:
        stamp = os.fstat(file)
        samples: dict[str, dict[str, Member]] = {}
        for member in _members(file, bad):
            folder, slash, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            sample = samples.setdefault(folder + slash + stem, {})
            role = "picture" if kind.lower() in PICTURES else kind.lower()
            if role in sample:
                bad.append(Bad(member.name, "duplicate key: only the first is used"))
            else:
                sample[role] = member
        for key, sample in samples.items():
            if "picture" in sample and sample["picture"].length > MAX_BYTES:
                bad.append(Bad(key, f"file too large: {sample['picture'].length:,} bytes are over {MAX_BYTES:,}"))
            elif "picture" in sample:
                caption = _caption(file, sample)
                if isinstance(caption, str):
                    pairs.append(Entry(*sample["picture"], caption))
                else:
                    bad.append(Bad(key, caption.reason))
            elif "txt" in sample or "json" in sample:
                bad.append(Bad(key, "no picture"))
    finally:
        os.close(file)
    return pairs, stamp, [Bad(f"{path.name}/{key}" if key else path.name, reason) for key, reason in bad]


def _caption(file: int, sample: dict[str, Member]) -> str | Bad:
    member = sample.get("txt") or sample.get("json")
    if member is None:
        return Bad("", "no caption")
    if member.length > MAX_TEXT:
        return Bad(member.name, f"caption too long: {member.length:,} bytes are over {MAX_TEXT:,}")
    try:
        text = os.pread(file, member.length, member.start).decode("utf-8-sig")
        caption = text if "txt" in sample else json.loads(text)["caption"]
        caption = clean(caption) if isinstance(caption, str) else ""
        caption.encode()  # JSON can spell what UTF-8 cannot
    except UnicodeError as error:
        return Bad(member.name, f"not UTF-8: {error}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Bad(member.name, f"no caption: {type(error).__name__}: {error}")
    return caption or Bad(member.name, "empty caption")


def _members(file: int, bad: list[Bad]) -> Iterator[Member]:
    """The regular files; the standard library parses each header, the steps from one to the next are checked here."""
    size, at, long_name = os.fstat(file).st_size, 0, ""
    while (header := os.pread(file, BLOCK, at)) != bytes(BLOCK):
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            start = at + BLOCK
            length = 0 if member.type in WITHOUT_DATA else member.size
            if not 0 <= length <= size - start:
                raise ValueError(f"{member.name!r} says {length:,} bytes, {size - start:,} are left")
        except (tarfile.HeaderError, ValueError) as error:
            bad.append(Bad("", f"shard damaged or cut short: at byte {at:,}: {error}"))
            return
        at = start + -(-length // BLOCK) * BLOCK
        if member.type in EXTENDED + LONG_NAME:
            if length > MAX_TEXT:
                bad.append(Bad("", f"shard refused: a header of {length:,} bytes"))
                return
            data = os.pread(file, length, start)
            long_name = (_pax_path(data) if member.type in EXTENDED else _text(data)) or long_name
        elif member.type not in IGNORED:
            name, long_name = long_name or member.name, ""
            reason = _refusal(name, member)
            if reason:
                bad.append(Bad(name, reason))
            elif member.type in REGULAR:
                yield Member(name, start, length)


def _refusal(name: str, member: tarfile.TarInfo) -> str | None:
    if member.type not in REGULAR and not member.isdir():
        return f"no regular file: type {member.type!r} is refused"
    if name.startswith("/") or ".." in name.split("/"):
        return "name outside its folder"
    return None


def _pax_path(data: bytes) -> str:
    """The "path" among an extended header's records, each `LENGTH KEY=VALUE` and a line feed; other keys do not matter here."""
    path = ""
    while data:
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        if not len(digits) < length <= len(data):
            return path
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        path = _text(value) if key == b"path" else path
        data = data[length:]
    return path


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
