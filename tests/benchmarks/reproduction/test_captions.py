"""The official caption files as they are, and every way in which a line of them can be bad."""

import bz2
import csv
import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reproduction.bad import Bad
from benchmarks.reproduction.captions import MAX_LINE, Row, read_cc3m, read_table, read_wit, read_yfcc15m

WIT_COLUMNS = [
    "language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title",
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id", "page_changed_recently",
    "context_page_description", "context_section_description",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), max_size=30)


def split(found: Iterable[Row | Bad]) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows, and where each bad one is with the part of the reason that is counted."""
    rows, bad = [], []
    for row in found:
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append((row.key, row.reason.split(":")[0]))
    return rows, bad


def test_cc3m_keeps_quotes_and_counts_each_kind_of_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_bytes(
        b'a "quoted dog with one quote \t http://a/1.jpg \r\n'
        b'"  the  beach ,\r at night\thttp://a/2.jpg\n'
        b"   \thttp://a/3.jpg\n"
        b"caf\xe9\thttp://a/4.jpg\n"
        b"no address\n"
        + b"x" * (3 * MAX_LINE)
        + b"\thttp://a/6.jpg\n"
        + "ein Mädchen \U0001f600\t\n".encode()
        + b"the last line has no end\thttp://a/8.jpg"
    )
    rows, bad = split(read_cc3m(path))
    assert rows == [
        Row("000000000", 'a "quoted dog with one quote', "http://a/1.jpg"),
        Row("000000001", '" the beach , at night', "http://a/2.jpg"),
        Row("000000006", "ein Mädchen \U0001f600", None),
        Row("000000007", "the last line has no end", "http://a/8.jpg"),
    ]
    assert bad == [
        ("Train_GCC-training.tsv:3", "empty caption"),
        ("Train_GCC-training.tsv:4", "not UTF-8"),
        ("Train_GCC-training.tsv:5", "wrong number of columns"),
        ("Train_GCC-training.tsv:6", "line too long"),
    ]


@given(captions=st.lists(TEXT, max_size=8))
def test_cc3m_gives_back_what_was_written(tmp_path: Path, captions: list[str]) -> None:
    path = tmp_path / "drawn.tsv"
    path.write_bytes("".join(f"{caption}\thttp://a\n" for caption in captions).encode())
    rows, bad = split(read_cc3m(path))
    assert {row.key: row.caption for row in rows} == {
        f"{number:09d}": " ".join(caption.removeprefix("\ufeff").split())
        for number, caption in enumerate(captions)
        if caption.removeprefix("\ufeff").split()
    }
    assert len(rows) + len(bad) == len(captions)


@given(data=st.binary(max_size=200))
def test_no_bytes_stop_a_reader(tmp_path: Path, data: bytes) -> None:
    path, packed = tmp_path / "any.tsv", tmp_path / "any.tsv.gz"
    path.write_bytes(data)
    packed.write_bytes(data)
    rows, bad = split(read_cc3m(path))
    assert len(rows) + len(bad) == len(io.BytesIO(data).readlines())
    split(read_cc3m(packed))


def write_wit(path: Path, rows: list[dict[str, str]], end: bytes = b"") -> None:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [f"{name} " if name == "caption_alt_text_description" else name for name in WIT_COLUMNS], delimiter="\t"
    )
    writer.writeheader()
    for row in rows:
        writer.writerow({name: row.get(name.strip(), "") for name in writer.fieldnames})
    path.write_bytes(gzip.compress(text.getvalue().encode() + end))


def test_wit_takes_one_language_and_the_first_caption(tmp_path: Path) -> None:
    first, second = tmp_path / "wit_v1.train.all-00000-of-00010.tsv.gz", tmp_path / "wit_v1.train.all-00001-of-00010.tsv.gz"
    reference, alternative, attribution = (
        "caption_reference_description",
        "caption_alt_text_description",
        "caption_attribution_description",
    )
    write_wit(
        first,
        [
            {"language": "en", "image_url": "u0", reference: 'The "old"\nbridge\tat noon', alternative: "not this"},
            {"language": "de", "image_url": "u1", reference: "Die Brücke"},
            {"language": "en", "image_url": "u2", alternative: "a bridge", "context_page_description": "x" * 200_000},
            {"language": "en", "image_url": "u3", attribution: "English: bridge", "attribution_passes_lang_id": "true"},
            {"language": "en", "image_url": "u4", attribution: "Brücke", "attribution_passes_lang_id": "false"},
        ],
        end=b"en\ttoo few columns\nen\t" + b'"' + b"y" * 100 + b"\n",
    )
    write_wit(second, [{"language": "en", "image_url": "u7", reference: "last"}])
    rows, bad = split(read_wit([first, second]))
    assert rows == [
        Row("000000000", 'The "old" bridge at noon', "u0"),
        Row("000000002", "a bridge", "u2"),
        Row("000000003", "English: bridge", "u3"),
        Row("000000007", "last", "u7"),
    ]
    assert [reason for _, reason in bad] == ["empty caption", "wrong number of columns", "wrong number of columns"]


def test_a_quote_that_never_closes_and_a_huge_field_cost_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "wit.tsv.gz"
    after = b"en" + b"\t" * 6 + b"found again" + b"\t" * 10 + b"\n"
    write_wit(path, [], end=b'en\t"' + (b"z" * 1000 + b"\n") * (MAX_LINE // 1000) + after)
    rows, bad = split(read_wit([path]))
    assert [row.caption for row in rows] == ["found again"]
    assert ("wit.tsv.gz:2", "cannot be parsed") in bad


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_cut_archive_gives_what_it_holds(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    lines = b"".join(b"caption %d\thttp://a/%d.jpg\n" % (number, number * 7919) for number in range(60_000))
    packed = compress(lines)
    path = tmp_path / ("cut.tsv.gz" if compress is gzip.compress else "cut.tsv.bz2")
    path.write_bytes(packed[: len(packed) * 3 // 4])
    rows, bad = split(read_cc3m(path))
    assert [row.caption for row in rows] == [f"caption {number}" for number in range(len(rows))]
    assert bad[-1][1] == "file damaged or cut short"
    assert len(rows) > (30_000 if compress is gzip.compress else 0)


def test_yfcc15m_joins_title_and_description_of_the_subset(tmp_path: Path) -> None:
    def photo(line: int, number: int, title: str, description: str, columns: int = 25) -> str:
        fields = [str(line), str(number), f"hash{number}", "user", "nick", "taken", "uploaded", "device", title, description]
        return "\t".join(fields + ["x"] * 6 + [f"http://farm/{number}.jpg"] + ["x"] * (columns - 17)) + "\n"

    subset, metadata = tmp_path / "yfcc100m_subset_data.tsv", tmp_path / "yfcc100m_dataset.bz2"
    subset.write_text("3\t30\thash30\n1\t10\thash10\n4\t40\thash40\nbroken line\n5\t99999999999999999999\th\n6\t60\thash60\n")
    text = "".join(
        [
            photo(1, 10, "A+caf%C3%A9+%2B+bar", "%3Cb%3Ebold%3C%2Fb%3E+%3Ca+href%3D%22x%22%3Elink%3C%2Fa%3E"),
            photo(2, 20, "not in the subset", ""),
            photo(3, 30, "", "Only+described+"),
            photo(4, 40, "", "+"),
            photo(6, 60, "too few", "columns", columns=20),
        ]
    )
    metadata.write_bytes(bz2.compress(text.encode()))
    rows, bad = split(read_yfcc15m(subset, metadata))
    assert rows == [
        Row("hash10", "A café + bar. bold link", "http://farm/10.jpg"),
        Row("hash30", "Only described", "http://farm/30.jpg"),
    ]
    assert [reason for _, reason in bad] == ["wrong columns", "wrong columns", "empty caption", "wrong number of columns"]


def test_tables_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('filepath, title \n1.jpg,"a ""big"", red\nball"\n ,nothing\n2.jpg,two\n')
    rows, bad = split(read_table(tmp_path / "a.csv", "title", "filepath", None))
    assert rows == [Row("1.jpg", 'a "big", red ball', None), Row("2.jpg", "two", None)]
    assert bad == [("a.csv:4", "empty image name")]
    (tmp_path / "b.csv").write_bytes(b"caption,n\none,1\ncaf\xe9,2\n\ntwo,3\ntoo,many,4\n")
    rows, bad = split(read_table(tmp_path / "b.csv", "caption", None, None))
    assert [row.caption for row in rows] == ["one", "two"]
    assert bad == [("b.csv:3", "not UTF-8"), ("b.csv:6", "wrong number of columns")]
    (tmp_path / "a.tsv").write_text('url\tcaption\nhttp://a\t"one\nhttp://b\ttwo"\n')
    rows, _ = split(read_table(tmp_path / "a.tsv", "caption", None, "url"))
    assert rows == [Row("000000000", '"one', "http://a"), Row("000000001", 'two"', "http://b")]
    with pytest.raises(ValueError, match=r"a\.tsv has no column text; its first line says: url, caption"):
        split(read_table(tmp_path / "a.tsv", "text", None, None))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty\.csv has no column caption"):
        split(read_table(tmp_path / "empty.csv", "caption", None, None))
