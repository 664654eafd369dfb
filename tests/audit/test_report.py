"""The page: complete in itself, safe with any caption, with pictures where there are some, and the numbers it was given."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from otter_losses.audit.command.histogram import Histogram
from otter_losses.audit.command.lists import LISTS, Names, Selection
from otter_losses.audit.command.page import FILES, write_page
from otter_losses.audit.command.pictures import SMALL, NoPicture, embedded
from tests.helpers.audits import judged

RESULT = judged([0.1 * row * (-1) ** row for row in range(40)])
VOID = {"meta", "img", "br", "rect", "polyline"}


class Page(HTMLParser):
    """The elements of a page, what they hold, and whether every one that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(names: Names, top: int = 10) -> tuple[str, Page]:
    text = write_page(RESULT, Selection.of(RESULT, 0.5, None, top), names, top, [*LISTS, "summary.json"])
    return text, Page(text)


HOSTILE = [
    "<script>alert('x')</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></main><b>",
    "&lt;b&gt; &amp;",
    "صورة قطة",
    "\u202eevil",
    "",
    "x" * 5000,
]


def test_captions_keys_and_paths_are_shown_as_they_are_and_never_run() -> None:
    hostile = [HOSTILE[row % 8] for row in range(40)]
    names = Names(hostile, hostile, hostile)
    text, page = made(names, top=40)
    assert page.all("script") == []
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    for caption in HOSTILE[:6]:
        assert caption in page.texts
    assert "x" * 601 not in text
    assert "(empty)" in page.texts
    given = [attributes for attributes in page.all("dd") if attributes.get("class") == "given"]
    assert len(given) == 40
    assert all(attributes["dir"] == "auto" for attributes in given)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    text, page = made(Names(pictures=[str(tmp_path / "a.png")] * 40))
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.all("link") == []
    assert len(page.all("img")) == 10
    assert all(str(attributes["src"]).startswith("data:image/jpeg;base64,") for attributes in page.all("img"))
    assert all(attributes["alt"] for attributes in page.all("img"))


def test_the_most_suspicious_come_first_with_what_the_audit_would_rather_give_them() -> None:
    names = Names([f"caption {row}" for row in range(40)], [f"key {row}" for row in range(40)])
    _, page = made(names, top=3)
    captions = [text for text in page.texts if text.startswith("caption ")]
    assert captions == ["caption 39", "caption 0", "caption 37", "caption 38", "caption 35", "caption 36"]
    assert "key 39" in page.texts
    assert "The 3 most suspicious pairs" in page.texts


def test_the_numbers_are_those_of_the_audit() -> None:
    _, page = made(Names())
    shown = " ".join(page.texts)
    assert "Audit of 40 image-text pairs" in shown
    assert "25 % 95 % interval 20 % to 31 %" in shown
    assert "20 50 % of all" in shown
    table = [text for text in page.texts if re.fullmatch(r"\d+|[\d.]+ %|0\.\d+", text)]
    assert table[-20:] == [
        *("0.1", "36", "90 %", "46 %"),
        *("0.25", "30", "75 %", "39 %"),
        *("0.5", "20", "50 %", "26 %"),
        *("0.75", "10", "25 %", "14 %"),
        *("0.9", "4", "10 %", "6.2 %"),
    ]  # trust is row / 40: the mean of 1 - trust from 0.1 on is 1 - (0.1 + 0.975) / 2


def test_every_file_beside_it_is_explained() -> None:
    _, page = made(Names())
    assert all(name in page.texts and FILES[name] in page.texts for name in (*LISTS, "summary.json"))


def test_a_page_without_a_suspicious_pair_says_so_by_leaving_them_out() -> None:
    text = write_page(RESULT, Selection.of(RESULT, 0.0, None, 0), Names(), 0, [])
    assert "suspicious pairs" not in text


def test_the_histogram_counts_every_pair_once_and_scales_the_mismatched_ones() -> None:
    scores = torch.cat((torch.randn(4000, generator=torch.Generator().manual_seed(1)), torch.tensor([1e6, -1e6])))
    histogram = Histogram.of(judged(scores.tolist(), null_score=scores[:1000]))
    assert histogram.pairs.sum() == 4002
    assert histogram.wrong.sum() == pytest.approx(0.25 * 4002, rel=1e-12)
    assert histogram.edges[-1] < 10  # two outliers do not press the rest into one bin
    bars = Page(histogram.svg(0.0, "described")).all("rect")
    assert len(bars) == 60
    classes = [str(bar["class"]) for bar in bars]
    assert classes == sorted(classes)  # dropped, then kept
    assert set(classes) == {"dropped", "kept"}


@pytest.mark.parametrize("scores", [[0.0] * 40, [1e-8 * row for row in range(40)], [1e5 * row for row in range(40)]])
def test_scores_of_any_range_have_a_page(scores: list[float]) -> None:
    result = judged(scores, null_score=torch.zeros(40))
    Page(write_page(result, Selection.of(result, 0.5, None, 5), Names(), 5, []))


def picture(path: Path, size: tuple[int, int] = (700, 500), mode: str = "RGB") -> Path:
    Image.effect_noise(size, 90).convert(mode).save(path)
    return path


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.png", "P"), ("d.tif", "I;16")])
def test_pictures_are_made_small(name: str, mode: str, tmp_path: Path) -> None:
    path = picture(tmp_path / name, mode=mode)
    uri = embedded(path)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 2 * SMALL


def test_what_is_no_picture_is_said_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(NoPicture, match="no such file"):
        embedded(tmp_path / "none.png")
    with pytest.raises(NoPicture, match=r"cannot be read \(UnidentifiedImageError\)"):
        embedded(tmp_path / "broken.png")
    _, page = made(Names(pictures=["http://example.org/a.png"] * 40))
    assert page.all("img") == []
    assert page.texts.count("no such file") == 10


def test_without_pillow_small_files_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = picture(tmp_path / "a.png", size=(9, 9))
    large = picture(tmp_path / "b.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert embedded(small).startswith("data:image/png;base64,")
    with pytest.raises(NoPicture, match=r"needs pillow: pip install 'otter_losses\[audit\]'"):
        embedded(large)
