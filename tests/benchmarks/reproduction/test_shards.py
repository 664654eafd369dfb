"""Shards, whole, cut, damaged and hostile: what is found is in the file, and nothing else happens."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduction.images import MAX_BYTES
from benchmarks.reproduction.shards import BLOCK, MAX_TEXT, index_shard
from benchmarks.reproduction.synthetic import write_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:webdataset.*")


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def reasons(bad: list[Any]) -> list[str]:
    return [reason.split(":")[0] for _, reason in bad]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, 6, 6)
    return folder / "00000.tar"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_finds_what_tarfile_finds(tmp_path: Path, form: int) -> None:
    path = tmp_path / "00000.tar"
    folder = "f" * (90 if form == tarfile.USTAR_FORMAT else 300)
    with tarfile.open(path, "w", format=form) as archive:
        add(archive, folder, type=tarfile.DIRTYPE)
        for number in range(5):
            add(archive, f"{folder}/{number}ü.JPG", bytes([number]) * (number * 300), mtime=1.5)
            add(archive, f"{folder}/{number}ü.txt", f" caption {number}\n".encode())
            add(archive, f"{folder}/._{number}ü.jpg", b"a Mac's shadow")
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.name.endswith("ü.JPG") and "._" not in m.name]
    entries, stamp, bad = index_shard(path)
    assert [entry[:3] for entry in entries] == expected
    assert [entry.caption for entry in entries] == [f"caption {number}" for number in range(5)]
    assert stamp.st_size == path.stat().st_size
    assert not bad


def test_reads_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number:09d}", "jpg": b"picture %d" % number, "txt": f"text {number}", "json": {"a": 1}})
    entries, _, bad = index_shard(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    assert [content[e.start : e.start + e.length] for e in entries] == [b"picture 0", b"picture 1", b"picture 2"]
    assert [entry.caption for entry in entries] == ["text 0", "text 1", "text 2"]
    assert not bad


def test_counts_each_kind_of_bad_sample(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "good.jpg", b"1")
        add(archive, "good.txt", b"good")
        add(archive, "good.jpg", b"again")
        for key, kind, content in [
            ("blank", "txt", b" \n"), ("latin", "txt", b"caf\xe9"), ("long", "txt", b"x" * (MAX_TEXT + 1)),
            ("null", "json", b'{"caption": null}'), ("bare", "json", b"{}"), ("list", "json", b"[]"),
            ("half", "json", b'{"caption": "\\ud800"}'), ("deep", "json", b"[" * 60_000),
        ]:  # fmt: skip
            add(archive, f"{key}.jpg", b"1")
            add(archive, f"{key}.{kind}", content)
        add(archive, "json.jpg", b"1")
        add(archive, "json.json", json.dumps({"caption": "from json"}).encode())
        add(archive, "alone.jpg", b"1")
        add(archive, "lost.txt", b"no picture")
        add(archive, "00000_stats.parquet", b"no sample at all")
        add(archive, "large.jpg", bytes(MAX_BYTES + 1))
        add(archive, "large.txt", b"large")
    entries, _, bad = index_shard(path)
    assert [(entry.name, entry.caption) for entry in entries] == [("good.jpg", "good"), ("json.jpg", "from json")]
    assert {key.removeprefix("00000.tar/"): reason.split(":")[0] for key, reason in bad} == {
        "good.jpg": "duplicate key", "blank": "empty caption", "latin": "not UTF-8", "long": "caption too long",
        "null": "empty caption", "half": "not UTF-8", "bare": "no caption",
        "list": "no caption", "deep": "no caption", "alone": "no caption",
        "lost": "no picture", "large": "file too large",
    }  # fmt: skip


def test_refuses_links_devices_and_names_outside(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("/etc/passwd.jpg", "../up.jpg", "a/../../b.jpg"):
            add(archive, name, b"1")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            add(archive, f"{kind!r}.jpg", type=kind, linkname="/etc/passwd")
        add(archive, "sparse.jpg", b"1", type=tarfile.GNUTYPE_SPARSE)
        add(archive, "folder.jpg", type=tarfile.DIRTYPE)
        add(archive, "folder.txt", b"a folder")
        add(archive, "good.jpg", b"1")
        add(archive, "good.txt", b"good")
    entries, _, bad = index_shard(path)
    assert [entry.name for entry in entries] == ["good.jpg"]
    assert reasons(bad) == ["name outside its folder"] * 3 + ["no regular file"] * 6 + ["no picture"]
    assert [file.name for file in tmp_path.iterdir()] == ["00000.tar"]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with these 12 bytes of size and a right sum."""
    buffer = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    buffer[124:136], buffer[156:157], buffer[148:156] = size, kind, b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    return bytes(buffer)


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (b"77777777777\0", b"0"),  # 8 GiB
        (b"\xff" * 12, b"0"),  # -1: a walk that went back would never end
        (b"\xff" * 10 + b"\xfc\x00", b"0"),  # -1024
        (b"\x80" + b"\x7f" * 11, b"0"),  # more than 2**63
        (b"77777777777\0", tarfile.XHDTYPE),
        (b"00000400000\0", tarfile.XHDTYPE),  # 128 KiB, which the file does hold
        (b"00000400000\0", tarfile.GNUTYPE_LONGNAME),
        (b"nonsense\0\0\0\0", b"0"),
    ],
)
def test_a_size_that_cannot_be_ends_the_archive(tmp_path: Path, shard: Path, size: bytes, kind: bytes) -> None:
    start = shard.read_bytes()[: 6 * 3 * 20 * BLOCK]
    whole, _, _ = index_shard(shard)
    end = max(at for at in range(0, len(start), BLOCK) if start[at + 257 : at + 262] == b"ustar")
    path = tmp_path / "00000.tar"
    path.write_bytes(start[:end] + header("x.jpg", size, kind) + bytes(2**18))
    entries, _, bad = index_shard(path)
    assert 0 < len(entries) <= len(whole)
    assert entries == whole[: len(entries)]
    assert any(reason.startswith("shard ") for reason in reasons(bad))


def test_many_headers_before_a_member_are_no_matter(tmp_path: Path) -> None:
    """The standard library's reader calls itself for each."""
    long_name = header("././@LongLink", b"00000000005\0", tarfile.GNUTYPE_LONGNAME) + b"a.jpg".ljust(BLOCK, b"\0")
    path = tmp_path / "00000.tar"
    picture, caption = header("x", b"0" * 11 + b"\0"), header("a.txt", b"0" * 10 + b"1\0") + b"t".ljust(BLOCK, b"\0")
    path.write_bytes(long_name * 20_000 + picture + caption + bytes(2 * BLOCK))
    assert index_shard(path)[0][0].name == "a.jpg"


def prefixes(length: int) -> Iterator[int]:
    draw = random.Random(0)
    yield from (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, *(draw.randrange(length) for _ in range(60)))


def test_a_cut_shard_keeps_what_is_whole_wherever_it_is_cut(tmp_path: Path, shard: Path) -> None:
    content, path = shard.read_bytes(), tmp_path / "00000.tar"
    whole, _, _ = index_shard(shard)
    last = whole[-1].start + whole[-1].length
    for length in prefixes(last):
        path.write_bytes(content[:length])
        entries, _, bad = index_shard(path)
        assert entries == whole[: len(entries)]
        assert "shard damaged or cut short" in reasons(bad)
        following = [entry for entry in whole if entry.start + entry.length > length]
        assert len(entries) >= len(whole) - len(following) - 1  # a picture that is whole may have lost its caption


@given(changes=st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(0, 255)), min_size=1, max_size=20))
def test_no_damage_stops_the_index_or_leads_out_of_the_file(tmp_path: Path, shard: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(shard.read_bytes())
    for place, value in changes:
        content[place] = value
    path = tmp_path / "00000.tar"
    path.write_bytes(content)
    entries, _, _ = index_shard(path)
    assert all(0 <= entry.start <= entry.start + entry.length <= len(content) for entry in entries)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + bytes(5000), bytes(1024)])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "00000.tar"
    path.write_bytes(content)
    entries, _, bad = index_shard(path)
    assert not entries
    assert len(bad) == (0 if content == bytes(1024) else 1)  # two empty blocks are an empty archive
