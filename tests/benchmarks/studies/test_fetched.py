"""What is fetched: archives as they come, and the pairs in them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.data import packages
from benchmarks.studies.data.fetched import pairs
from benchmarks.studies.data.split import role_of
from benchmarks.studies.table.settings import SOURCES


def archive(members: dict[str, bytes], compression: str = "gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for info in extra:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def deb(data: bytes, compression: str = "xz") -> bytes:
    content = b"!<arch>\n"
    for name, member in (("debian-binary", b"2.0\n"), (f"data.tar.{compression}", data)):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n".encode() + member + b"\n" * (len(member) % 2)
    return content


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_archives_are_read_without_touching_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    hostile = (link("usr/svg/link.svg", "/etc/passwd"), link("usr/svg/up.svg", "../../../up.svg"))
    path.write_bytes(
        deb(archive({"/etc/abs.svg": b"a", "../../out.svg": b"b", "usr/svg/c.svg": b"c", "usr/d.txt": b"d"}, "xz", hostile))
    )
    read = dict(packages.read_debian(path, ".svg"))
    assert read == {"/etc/abs.svg": b"a", "../../out.svg": b"b", "usr/svg/c.svg": b"c"}
    assert [file.name for file in tmp_path.iterdir()] == ["x.deb"]
    assert not (tmp_path.parent.parent / "out.svg").exists()


def test_archives_larger_than_they_can_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(archive({"package/icons.json": b"0" * 1000}))
    assert len(packages.read_npm(path, "icons.json")) == 1000
    monkeypatch.setattr(packages, "LARGEST_MEMBER", 999)
    with pytest.raises(ValueError, match=r"x\.tgz is larger than it can be: package/icons\.json has 1,000 bytes"):
        packages.read_npm(path, "icons.json")


@pytest.mark.parametrize("content", [b"", b"no archive", archive({"package/icons.json": bytes(range(256)) * 64})[:-40]])
def test_damaged_archives_say_what_to_delete(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tgz .*delete it, so that it is fetched again"):
        packages.read_npm(path, "icons.json")
    with pytest.raises(ValueError, match=r"x\.tgz holds no data\.tar; delete it"):
        list(packages.read_debian(path, ".svg"))


def test_a_package_that_cannot_be_fetched_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    fails = r"the package {} could not be fetched: there is no command {} here\. Run `{}` in .*, or where the network is and copy"
    with pytest.raises(RuntimeError, match=fails.format("emojibase-data", "npm", r"npm pack .* emojibase-data@17\.0\.0")):
        packages.npm_archive("emojibase-data", tmp_path / "cache")
    with pytest.raises(RuntimeError, match=fails.format("openclipart-svg", "apt-get", "apt-get download openclipart-svg")):
        packages.debian_archive(tmp_path / "cache")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'E404 not found' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(RuntimeError, match="the package emojibase-data could not be fetched: E404 not found"):
        packages.npm_archive("emojibase-data", tmp_path / "cache")
    by_hand = tmp_path / "cache" / "emojibase-data-17.0.0.tgz"
    by_hand.write_bytes(b"")
    assert packages.npm_archive("emojibase-data", tmp_path / "cache") == by_hand


SQUARE = '<path fill="#f00" d="M1 1h2v2H1z"/>'


def named(role: str) -> str:
    return next(name for name in (f"thing {index}" for index in range(99)) if role_of(name) == role)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A folder with all packages, of a few pictures each."""
    entries: list[dict[str, Any]] = [
        {"label": named("test"), "hexcode": "1F600-FE0F", "group": 0, "tags": ["smile", "face"]},
        {"label": named("training"), "hexcode": "1F601", "group": 1},
        {"label": "flag: Nowhere", "hexcode": "1F602", "group": 9},
        {"label": "light skin tone", "hexcode": "1F3FB", "group": 2},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    names = [entry["label"].replace(" ", "-") for entry in entries]
    for name, version in packages.NPM_VERSIONS.items():
        icons = {"icons": {names[0]: {"body": SQUARE}}, "width": 8, "height": 4}
        icons["aliases"] = {names[1]: {"parent": names[0], "hFlip": True}}
        if name.endswith("game-icons"):
            icons["icons"] = {"big-axe-02": {"body": SQUARE}, "old": {"body": SQUARE, "hidden": True}}
        characters = {"1f600": names[0], "1f601": names[1]} if name.endswith("/openmoji") else {}
        members = {"package/icons.json": icons, "package/chars.json": characters, "package/en/data.json": entries}
        content = archive({path: json.dumps(value).encode() for path, value in members.items()})
        (tmp_path / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz").write_bytes(content)

    def art(title: str, *keywords: str) -> bytes:
        words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        return f"<svg><dc:title>{title}</dc:title>{words}</svg>".encode()

    drawings = {
        "animals/a.svg": art("Old_Dog", "pet", "hash", "", "Old Dog"),
        "shapes/stars/s.svg": art("star"),
        "x/n.svg": b"<svg/>",
    }
    drawings |= {f"homes/{index}.svg": art("Homes") for index in range(pairs.SERIES + 1)}
    data = archive({f"./usr/share/openclipart/svg/{name}": content for name, content in drawings.items()}, "xz")
    (tmp_path / "openclipart-svg_1_all.deb").write_bytes(deb(data))
    return tmp_path


def test_pairs_are_listed_by_the_rules(registry: Path) -> None:
    listed = pairs.list_pairs(registry)
    by_source: dict[str, list[pairs.Pair]] = {}
    for pair, _ in listed:
        by_source.setdefault(pair.source, []).append(pair)
    assert set(by_source) == {source for kind in SOURCES.values() for source in kind} | set(pairs.UNSEEN_DESIGNS)
    assert [pair.name for pair in by_source["twemoji"]] == [named("test"), named("training")]
    assert {pair.tag for pair in by_source["twemoji"]} <= {"smile", "face", named("training")}
    assert [pair.name for pair in by_source["noto"]] == [named("test")]  # an unseen design has nothing to train on
    assert [(pair.name, pair.concept) for pair in by_source["game-icons"]] == [("big axe", None)]
    art = {pair.key: pair for pair in by_source[pairs.CLIP_ART]}
    assert art["animals/a.svg"].caption == "Old Dog, pet"
    assert art["animals/a.svg"].concept == "old dog"
    assert [pair.concept for key, pair in art.items() if key.startswith("homes/")] == [None] * (pairs.SERIES + 1)
    assert len(art) == pairs.SERIES + 2
    assert listed == pairs.list_pairs(registry)


def test_pictures_are_drawn_mirrored_and_cropped(registry: Path) -> None:
    drawings = {(pair.source, pair.name): drawing for pair, drawing in pairs.list_pairs(registry)}
    picture, mirror = (pairs.draw(drawings["openmoji", named(role)], 64) for role in ("test", "training"))
    assert picture is not None
    assert mirror is not None
    assert picture.getpixel((16, 32)) == mirror.getpixel((47, 32)) == (255, 0, 0)
    assert picture.getpixel((47, 32)) == mirror.getpixel((16, 32)) == (255, 255, 255)
    cropped = pairs.draw(drawings["game-icons", "big axe"], 64)
    assert cropped is not None
    assert np.mean(np.asarray(cropped)[..., 1] == 0) == pytest.approx(0.9**2, abs=0.03)
    assert pairs.draw(pairs.Drawing("<svg"), 64) is None
    assert pairs.draw(drawings[pairs.CLIP_ART, "Homes"], 64) is None
