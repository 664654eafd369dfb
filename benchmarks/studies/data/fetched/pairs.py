"""Pictures and their captions from archives fetched from npm and Debian.

- emoji: six designs of the concepts of emojibase without skin tones and flags, named by their CLDR labels. Four designs train;
  all six show the held-out concepts.
- icons: five sets, captioned with their names in plain words; they only train.
- clip art: the Open Clip Art Library without its series. A title that more than `SERIES` files share names a collection and no
  picture; such files only train. Captions are the title and the keywords as people typed them.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
from PIL import Image, ImageOps

from benchmarks.studies.data.packages import debian_archive, npm_archive, read_debian, read_npm
from benchmarks.studies.data.split import hashed, plain, role_of

TRAINING_DESIGNS = ("openmoji", "twemoji", "fluent-emoji-flat", "emojione")
UNSEEN_DESIGNS = ("noto", "noto-v1")
ICONS = ("game-icons", "icon-park", "streamline-ultimate-color", "streamline-freehand-color", "flat-color-icons")
CLIP_ART = "openclipart"
COMPONENTS, FLAGS = 2, 9
"""Groups of emojibase: skin tones and hair, and flags."""

SERIES = 5
SERIES_FOLDERS = re.compile(
    r"-theme/|^shapes/(stars|jigsaw)/|^recreation/games/cards/|^signs_and_symbols/(flags|map_symbols|led)/|^special/|/duplicates/"
)
MARGIN = 0.05
"""White on each side of clip art and icons, as a share of the canvas; emoji bring their own."""
LARGEST_SVG = 2**21
SCALE = 2
"""Clip art is drawn so much larger before it is cropped to what it shows."""


class Pair(NamedTuple):
    """What is known of a picture. Pairs without a concept only train."""

    source: str
    key: str
    name: str
    caption: str
    tag: str
    """One keyword instead of the name: a weak caption. The caption where there is none."""
    concept: str | None


class Drawing(NamedTuple):
    """How to draw it: an SVG, to be cropped to its drawn part or mirrored."""

    svg: str
    crop: bool = False
    mirrored: bool = False


def list_pairs(folder: Path) -> list[tuple[Pair, Drawing]]:
    """All pairs, always in the same order; the archives are downloaded to the folder unless they are there."""
    return [*_emoji(folder), *_icons(folder), *_clip_art(folder)]


def draw(drawing: Drawing, size: int) -> Image.Image | None:
    """A square RGB picture on white; None where the SVG cannot be drawn or shows nothing."""
    side = size * SCALE if drawing.crop else size
    try:
        png = resvg_py.svg_to_bytes(svg_string=drawing.svg, width=side, height=side, dpi=90, skip_system_fonts=True)
        picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (ValueError, OSError):
        return None
    box = picture.getchannel("A").getbbox()
    if box is None:
        return None
    if drawing.crop:
        inner = round(size * (1 - 2 * MARGIN))
        picture = ImageOps.contain(picture.crop(box), (inner, inner), Image.Resampling.BOX)
    if drawing.mirrored:
        picture = ImageOps.mirror(picture)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2), picture)
    return canvas


def _emoji(folder: Path) -> Iterator[tuple[Pair, Drawing]]:
    entries = json.loads(read_npm(npm_archive("emojibase-data", folder), "en/data.json"))
    for design in (*TRAINING_DESIGNS, *UNSEEN_DESIGNS):
        icons = _IconSet(design, folder)
        for entry in entries:
            label = entry["label"]
            if entry.get("group") in (None, COMPONENTS, FLAGS):
                continue
            if design in UNSEEN_DESIGNS and role_of(plain(label)) == "training":
                continue
            key = icons.key(entry["hexcode"], label)
            if key is not None:
                tag = _drawn(entry.get("tags") or [label], f"{design} {label}")
                yield Pair(design, key, label, label, tag, plain(label)), icons.drawing(key)


def _icons(folder: Path) -> Iterator[tuple[Pair, Drawing]]:
    for source in ICONS:
        icons = _IconSet(source, folder)
        for key in icons.keys:
            name = re.sub(r"(-\d+)+$", "", key).replace("-", " ")
            yield Pair(source, key, name, name, name, None), icons.drawing(key)


def _clip_art(folder: Path) -> Iterator[tuple[Pair, Drawing]]:
    found = []
    for path, content in read_debian(debian_archive(folder), ".svg"):
        name = path.split("/svg/", 1)[-1]
        if len(content) <= LARGEST_SVG and not SERIES_FOLDERS.search(name):
            svg = content.decode("utf-8", "replace")
            title, keywords = _described(svg)
            if title:
                found.append((name, title, keywords, svg))
    sharing = Counter(plain(title) for _, title, _, _ in found)
    for name, title, keywords, svg in sorted(found):
        concept = plain(title) if sharing[plain(title)] <= SERIES else None
        caption = ", ".join(dict.fromkeys([title, *keywords]))
        yield Pair(CLIP_ART, name, title, caption, _drawn(keywords or [title], name), concept), Drawing(svg, crop=True)


def _described(svg: str) -> tuple[str, list[str]]:
    """An SVG's title and keywords, as its metadata has them."""
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", svg, re.DOTALL)
    keywords = re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", svg, re.DOTALL)
    words = [_words(keyword) for keyword in keywords]
    return _words(title[1]) if title else "", [word for word in words if word and word != "hash"]


def _words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>|_", " ", text).split())


def _drawn(choices: list[str], key: str) -> str:
    """One of the choices, fixed by the key alone."""
    return choices[hashed(key) % len(choices)]


class _IconSet:
    """A set of icons in Iconify's JSON."""

    def __init__(self, name: str, folder: Path) -> None:
        archive = npm_archive(f"@iconify-json/{name}", folder)
        self._set: dict[str, Any] = json.loads(read_npm(archive, "icons.json"))
        self._characters: dict[str, str] = json.loads(read_npm(archive, "chars.json"))
        self._crop = name in ICONS

    @property
    def keys(self) -> list[str]:
        return sorted(key for key, icon in self._set["icons"].items() if not icon.get("hidden"))

    def key(self, code: str, label: str) -> str | None:
        """An emoji's key, by its code points or by its name."""
        code = code.lower()
        key = self._characters.get(code) or self._characters.get(code.replace("-fe0f", ""))
        if key is None:
            named = re.sub(r"[^a-z0-9]+", "-", label.lower().replace("\u2019", "").replace("'", "")).strip("-")
            key = named if named in self._set["icons"] or named in self._set.get("aliases", {}) else None
        return key

    def drawing(self, key: str) -> Drawing:
        icon, mirrored = dict(self._set["icons"].get(key, {})), False
        alias = self._set.get("aliases", {}).get(key)
        while "body" not in icon and alias:
            mirrored ^= bool(alias.get("hFlip"))
            parent = alias["parent"]
            icon = {**self._set["icons"].get(parent, {}), **{size: alias[size] for size in ("width", "height") if size in alias}}
            alias = self._set["aliases"].get(parent)
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(side, self._set.get(side, 16)) for side in ("width", "height"))
        return Drawing(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>',
            self._crop,
            mirrored,
        )
