"""The official caption files as they are, plain or compressed: rows that can be used, and the ones that cannot, with the reason.

Nothing in a file stops the reading: a line that is too long, is not UTF-8 or lacks columns is one bad row; a compressed file
that was cut short gives what it holds and one bad row.
"""

import bz2
import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_plus

import numpy as np

from benchmarks.reproduction.bad import Bad

MAX_LINE = 2**20
"""Longer than any official line by far."""
OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
HTML = re.compile("<.*?>")
PHOTO = re.compile("[0-9]{1,19}")

CC3M_COLUMNS = 2
YFCC_HASH, YFCC_TITLE, YFCC_DESCRIPTION, YFCC_URL, YFCC_COLUMNS = 2, 8, 9, 16, 25
WIT_CAPTIONS = ("caption_reference_description", "caption_alt_text_description", "caption_attribution_description")


class Row(NamedTuple):
    """A pair before its picture is there. `key` names the picture; with img2dataset it is the row's number in nine digits."""

    key: str
    caption: str
    url: str | None


def clean(caption: str) -> str:
    """Without white space at the ends, and one space wherever there is some.

    >>> clean("  a dog \\t on the  beach ")
    'a dog on the beach'
    """
    return " ".join(caption.split())


def read_cc3m(path: Path) -> Iterator[Row | Bad]:
    """`Train_GCC-training.tsv`: caption and address, no header, quotes are characters like others."""
    for number, row in enumerate(_tabs(path)):
        if isinstance(row, Bad):
            yield row
        elif len(row.fields) != CC3M_COLUMNS:
            yield Bad(row.where, f"wrong number of columns: {len(row.fields)}, not {CC3M_COLUMNS}")
        else:
            yield _row(row, f"{number:09d}", row.fields[0], row.fields[1])


def read_yfcc15m(subset: Path, metadata: Path) -> Iterator[Row | Bad]:
    """`yfcc100m_subset_data.tsv` (line number, photo, hash) and the `yfcc100m_dataset` it selects from; the hash is the key.

    Title and description are what was typed, decoded and without HTML, joined by ". ".
    """
    photos = []
    for row in _tabs(subset):
        if isinstance(row, Bad):
            yield row
        elif len(row.fields) != 3 or not PHOTO.fullmatch(row.fields[1].strip()):
            yield Bad(row.where, "wrong columns: line number, photo and hash are needed")
        else:
            photos.append(int(row.fields[1]))
    wanted = np.unique(np.array(photos, dtype=np.uint64))
    for row in _tabs(metadata):
        if isinstance(row, Bad):
            yield row
        elif len(row.fields) != YFCC_COLUMNS or not PHOTO.fullmatch(row.fields[1]):
            yield Bad(row.where, f"wrong number of columns: {len(row.fields)}, not {YFCC_COLUMNS}")
        elif _contains(wanted, int(row.fields[1])):
            texts = [clean(HTML.sub("", unquote_plus(row.fields[column]))) for column in (YFCC_TITLE, YFCC_DESCRIPTION)]
            yield _row(row, row.fields[YFCC_HASH], ". ".join(filter(None, texts)), row.fields[YFCC_URL])


def read_wit(paths: Iterable[Path], language: str = "en") -> Iterator[Row | Bad]:
    """`wit_v1.train.all-*.tsv.gz`: the rows in one language, with the first caption of reference, alternative text, attribution.

    An attribution is in any language, so it counts only where the file says that it passed the test of language. The key is
    the row's number among all rows of all files.
    """
    count = itertools.count()
    for path in paths:
        for row in _named(path, "\t", ["language", "image_url", "attribution_passes_lang_id", *WIT_CAPTIONS]):
            number = next(count)
            if isinstance(row, Bad):
                yield row
            elif row.fields[0] == language:
                _, url, passes, reference, alternative, attribution = row.fields
                caption = reference.strip() or alternative.strip() or (attribution if passes.lower() == "true" else "")
                yield _row(row, f"{number:09d}", caption, url)


def read_table(path: Path, caption: str, image: str | None, url: str | None) -> Iterator[Row | Bad]:
    """A CSV, or a TSV without quoting, by the names of its columns. The key is the image's, or else the row's number."""
    names = [caption, *([image] if image else []), *([url] if url else [])]
    quoted = path.name.removesuffix(".gz").removesuffix(".bz2").endswith(".csv")
    for number, row in enumerate(_named(path, "," if quoted else None, names)):
        if isinstance(row, Bad):
            yield row
        else:
            key = row.fields[1].strip() if image else f"{number:09d}"
            yield _row(row, key, row.fields[0], row.fields[-1] if url else "") if key else Bad(row.where, "empty image name")


class _Line(NamedTuple):
    where: str
    fields: list[str]


def _row(line: _Line, key: str, caption: str, url: str) -> Row | Bad:
    caption = clean(caption)
    return Row(key, caption, url.strip() or None) if caption else Bad(line.where, "empty caption")


def _contains(values: "np.typing.NDArray[np.uint64]", value: int) -> bool:
    place = int(np.searchsorted(values, np.uint64(value)))
    return place < len(values) and int(values[place]) == value


def _named(path: Path, delimiter: str | None, names: list[str]) -> Iterator[_Line | Bad]:
    """The fields of the columns called `names`; a delimiter stands for quoted fields, None for tabs and no quoting."""
    rows = _quoted(path, delimiter) if delimiter else _tabs(path)
    header = next(rows, None)
    found = [name.strip() for name in header.fields] if isinstance(header, _Line) else []
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its first line says: {', '.join(found) or header}")
    places = [found.index(name) for name in names]
    for row in rows:
        if isinstance(row, _Line) and len(row.fields) != len(found):
            yield Bad(row.where, f"wrong number of columns: {len(row.fields)}, not {len(found)}")
        else:
            yield row if isinstance(row, Bad) else _Line(row.where, [row.fields[place] for place in places])


def _tabs(path: Path) -> Iterator[_Line | Bad]:
    """What csv.QUOTE_NONE means, but a carriage return inside a field does no harm."""
    for number, line in enumerate(_lines(path), 1):
        yield line if isinstance(line, Bad) else _Line(f"{path.name}:{number}", line.rstrip("\r\n").split("\t"))


def _quoted(path: Path, delimiter: str) -> Iterator[_Line | Bad]:
    csv.field_size_limit(MAX_LINE)
    bad: list[Bad] = []
    reader = csv.reader(_good(_lines(path), bad), delimiter=delimiter)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            yield from bad
            return
        except csv.Error as error:
            yield Bad(f"{path.name}:{first}", f"cannot be parsed: {error}")
            continue
        yield from bad
        bad.clear()
        if fields:
            yield _Line(f"{path.name}:{first}", fields)


def _good(lines: Iterable[str | Bad], bad: list[Bad]) -> Iterator[str]:
    for line in lines:
        if isinstance(line, Bad):
            bad.append(line)
            line = "\n"  # keeps the count of lines right
        yield line


def _lines(path: Path) -> Iterator[str | Bad]:
    with OPENERS.get(path.suffix, open)(path, "rb") as file:  # type: ignore[operator]
        for number in itertools.count(1):
            where = f"{path.name}:{number}"
            try:
                line = file.readline(MAX_LINE)
                too_long = len(line) == MAX_LINE and not line.endswith(b"\n")
                while len(line) == MAX_LINE and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
            except (OSError, EOFError, zlib.error) as error:
                yield Bad(where, f"file damaged or cut short: {error}")
                return
            if not line and not too_long:
                return
            try:
                yield Bad(where, f"line too long: over {MAX_LINE:,} bytes") if too_long else line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                yield Bad(where, f"not UTF-8: {error}")
