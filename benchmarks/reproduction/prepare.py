"""`prepare`: from shards, or from a folder of pictures and an official caption file, to an indexed data set.

    prepare FOLDER                                                    shards of img2dataset or webdataset
    prepare FOLDER --format cc3m --captions Train_GCC-training.tsv    pictures anywhere below FOLDER, named by the row's key
    prepare FOLDER --format cc3m --captions ... --urls                writes what img2dataset downloads, and prints how
    prepare FOLDER --synthetic 256                                    made-up pairs for a dry run

The index goes to FOLDER/index.pt, or to --index. Whatever cannot be used is counted, by reason.
"""

import argparse
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.reproduction.bad import Bad, Tally
from benchmarks.reproduction.captions import Row, read_cc3m, read_table, read_wit, read_yfcc15m
from benchmarks.reproduction.index import INDEX_NAME, Builder, Entry, Index
from benchmarks.reproduction.shards import PICTURES, Shard, index_shard
from benchmarks.reproduction.synthetic import write_shards
from benchmarks.reproduction.urls import URLS, write_urls
from benchmarks.reproduction.workers import worker_context

FORMATS = ("shards", "cc3m", "yfcc15m", "wit", "table")
CHUNK = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `prepare`."""
    add = parser.add_argument
    add("folder", type=Path, help="where the shards or pictures are, or where made-up ones go")
    add("--format", choices=FORMATS, default="shards", help="what is there; table: a CSV or TSV with named columns")
    add("--captions", type=Path, nargs="+", default=[], help="the official caption file or files, .gz and .bz2 too")
    add("--metadata", type=Path, help="yfcc15m: the yfcc100m_dataset file with the titles and descriptions")
    add("--caption-column", default="caption", help="table: the captions' column")
    add("--image-column", help="table: the column of file names below the folder, or of their stems")
    add("--url-column", help="table: the column of addresses")
    add("--urls", action="store_true", help=f"write FOLDER/{URLS} and print the command that downloads the pictures")
    add("--synthetic", type=int, metavar="N", help="make N pairs in shards in a new folder")
    add("--index", type=Path, help=f"where the index goes if not to FOLDER/{INDEX_NAME}")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that read shards")


def run(options: argparse.Namespace) -> None:
    """Does what the options ask for, and prints what came of it."""
    if options.synthetic is not None:
        index = make_synthetic(options.folder, options.synthetic)
    elif options.urls:
        write_urls(options.folder, _rows(options))
        return
    elif options.format == "shards":
        index = prepare_shards(options.folder, options.index, options.workers)
    else:
        index = prepare_files(options.folder, _rows(options), options.index)
    print(f"{len(index):,} pairs indexed in {options.index or options.folder / INDEX_NAME}")


def prepare_shards(folder: Path, index: Path | None = None, workers: int = 1) -> Index:
    """Indexes the shards below `folder`.

    Raises:
        ValueError: there are no shards, or not one pair in them.
        OSError: the index cannot be written; nothing of it is left behind then.
    """
    paths = sorted(_folder(folder).rglob("*.tar"))
    if not paths:
        raise ValueError(f"no shards (*.tar) below {folder}; for pictures in files give --format and --captions")
    _check_writable(index or folder / INDEX_NAME)
    builder, bad = Builder(), Tally()
    found = tqdm(_index_shards(paths, workers), "indexing", len(paths), unit="shard", disable=None)
    for path, shard in zip(paths, found, strict=True):
        if isinstance(shard, Bad):
            bad.add(shard)
            continue
        entries, stamp, dropped = shard
        bad.add(*dropped)
        if entries:
            builder.add_archive(path.relative_to(folder).as_posix(), stamp, entries)
    return _finish(builder, folder, index, bad)


def prepare_files(folder: Path, rows: Iterable[Row | Bad], index: Path | None = None) -> Index:
    """Indexes the pictures below `folder` that `rows` name by path or by stem; raises as `prepare_shards` does."""
    _check_writable(index or _folder(folder) / INDEX_NAME)
    builder, bad = Builder(), Tally()
    entries = _entries(folder, rows, bad)
    while chunk := list(itertools.islice(entries, CHUNK)):
        builder.add_files(chunk)
    return _finish(builder, folder, index, bad)


def make_synthetic(folder: Path, count: int) -> Index:
    """A new folder with `count` made-up pairs in at least two shards, indexed. It appears whole or not at all."""
    if count < 1:
        raise ValueError(f"--synthetic needs at least 1 pair, got {count}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder for the made-up pairs, or remove that one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write_shards(work, count, per_shard=min(1000, -(-count // 2)))
        prepare_shards(work)
        work.chmod(0o755)
        os.rename(work, folder)  # fails if another process was first
    except OSError as error:
        if folder.exists():
            raise FileExistsError(f"{folder} was made by another process meanwhile") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Index.load(folder / INDEX_NAME)


def _rows(options: argparse.Namespace) -> Iterator[Row | Bad]:
    """The rows of the caption files; what is missing is said before anything is read."""
    captions, name = options.captions, options.format
    if name == "shards" or not captions or (len(captions) > 1 and name != "wit"):
        needs = f"a --format ({', '.join(FORMATS[1:])}) and one file of --captions (wit: one or more)"
        raise ValueError(f"pictures in files need {needs}, got {name} and {len(captions)} files")
    for path in [*captions, *([options.metadata] if options.metadata else [])]:
        if not path.is_file():
            raise FileNotFoundError(f"no caption file at {path}")
    if name == "cc3m":
        return read_cc3m(captions[0])
    if name == "wit":
        return read_wit(captions)
    if name == "table":
        return read_table(captions[0], options.caption_column, options.image_column, options.url_column)
    if options.metadata is None:
        raise ValueError("--format yfcc15m needs --metadata: the subset's file has neither titles nor descriptions")
    return read_yfcc15m(captions[0], options.metadata)


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    return folder


def _check_writable(index: Path) -> None:
    """Rather now than after hours of reading."""
    try:
        tempfile.TemporaryFile(dir=index.parent).close()
    except OSError as error:
        reason = f"the index cannot be written to {index.parent} ({error.strerror})"
        raise type(error)(f"{reason}; give --index another place") from error


def _index_shards(paths: list[Path], workers: int) -> Iterator[Shard | Bad]:
    if workers <= 1 or len(paths) == 1:
        yield from map(_index_shard, paths)
        return
    with ProcessPoolExecutor(min(workers, len(paths)), worker_context(__name__)) as pool:
        yield from pool.map(_index_shard, paths)


def _index_shard(path: Path) -> Shard | Bad:
    try:
        return index_shard(path)
    except OSError as error:
        return Bad(path.name, f"shard cannot be read: {error.strerror}")


def _entries(folder: Path, rows: Iterable[Row | Bad], bad: Tally) -> Iterator[Entry]:
    """The rows whose picture is there: a key with a picture's suffix is a path, any other one a stem anywhere below `folder`."""
    stems: dict[str, str | None] | None = None
    for row in rows:
        if isinstance(row, Bad):
            bad.add(row)
            continue
        if _is_picture(row.key):
            if os.path.isabs(row.key) or ".." in Path(row.key).parts:
                bad.add(Bad(row.key, "picture outside its folder"))
                continue
            name: str | None = row.key if (folder / row.key).is_file() else ""
        else:
            stems = _stems(folder) if stems is None else stems
            name = stems.get(row.key, "")
        if name:
            yield Entry(name, 0, 0, row.caption)
        else:
            bad.add(Bad(row.key, "no picture" if name is not None else "duplicate key: several pictures have this stem"))


def _stems(folder: Path) -> dict[str, str | None]:
    """The picture of each stem, None where there are several."""
    found: dict[str, str | None] = {}
    for place, _, names in os.walk(folder):
        for name in filter(_is_picture, names):
            stem = name.rpartition(".")[0]
            found[stem] = None if stem in found else os.path.relpath(os.path.join(place, name), folder)
    return found


def _is_picture(name: str) -> bool:
    return name.lower().endswith(tuple(f".{kind}" for kind in PICTURES))


def _finish(builder: Builder, folder: Path, index: Path | None, bad: Tally) -> Index:
    made = builder.finish(folder, dict(bad.counts))
    bad.show()
    if not len(made):
        raise ValueError(f"not one usable pair in {folder}; dropped: {bad}")
    made.save(index or folder / INDEX_NAME)
    return made
