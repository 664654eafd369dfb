"""`prepare` on real folders: read-only, full, half-downloaded, and prepared twice at once."""

import argparse
import functools
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.reproduction.data import Loader, PairDataset
from benchmarks.reproduction.index import Index
from benchmarks.reproduction.prepare import add_arguments, make_synthetic, prepare_shards, run
from benchmarks.reproduction.synthetic import CLASSES, write_shards


def prepare(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(argument) for argument in arguments]))


def captions(index: Index) -> list[str]:
    return [index.captions[number] for number in range(len(index))]


def test_synthetic_data_is_made_whole_and_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path / "new" / "pairs", "--synthetic", "40")
    assert f"40 pairs indexed in {tmp_path / 'new' / 'pairs' / 'index.pt'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "new").rglob("*.*")) == ["00000.tar", "00001.tar", "index.pt"]
    index = PairDataset.open(tmp_path / "new" / "pairs", 32, train=True).index
    assert {name for name in CLASSES if any(f"a {name} on" in caption for caption in captions(index))} == set(CLASSES)
    with pytest.raises(FileExistsError, match="name a new folder"):
        prepare(tmp_path / "new" / "pairs", "--synthetic", "40")
    with pytest.raises(ValueError, match="at least 1 pair, got 0"):
        prepare(tmp_path / "other", "--synthetic", "0")


def test_shards_below_a_folder_are_indexed_by_any_number_of_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, 6, 3)
    os.truncate(tmp_path / "b" / "00001.tar", 600)
    (tmp_path / "b" / "00002.tar").write_bytes(b"junk")
    (tmp_path / "b" / "00003.tar").mkdir()
    indexes = []
    for workers in (1, 2):
        prepare(tmp_path, "--workers", workers)
        out = capsys.readouterr().out
        assert "dropped: 2 shard damaged or cut short, " in out
        assert "'00003.tar': shard cannot be read: Is a directory" in out
        indexes.append(Index.load(tmp_path / "index.pt"))
    assert indexes[0].archives == ["a/00000.tar", "a/00001.tar", "b/00000.tar"]
    assert captions(indexes[0]) == captions(indexes[1])
    assert indexes[0].key(0) == "a/00000.tar/000000000.jpg"
    assert indexes[0].dropped == indexes[1].dropped


def test_names_of_any_bytes_are_printed_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, 2, 2)
    with tarfile.open(tmp_path / "1.tar", "w", errors="surrogateescape") as archive:
        for name in ("\udcff\x1b[2J.jpg", "\udcff\x1b[2J.txt", "\udcfe\x1b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"1"))
    prepare(tmp_path, "--workers", 1)
    assert r"'1.tar/\udcfe\x1b': no caption" in capsys.readouterr().out
    batch = next(Loader(PairDataset.open(tmp_path, 8, train=False), lambda _: {}, batch_size=3).epoch(0))
    assert [bad.key for bad in batch.bad] == [r"1.tar/\udcff\x1b[2J.jpg"]


@pytest.fixture
def cc3m(tmp_path: Path) -> Path:
    (tmp_path / "Train_GCC-training.tsv").write_text(
        'a "red dog\thttp://a/0.jpg\n \thttp://a/1.jpg\nnot downloaded\thttp://a/2.jpg\ntwice\thttp://a/3.jpg\nlast \thttp://a/4.jpg\n'
    )
    for name in ("00000/000000000.jpg", "00000/000000001.jpg", "00000/000000003.jpg", "1/000000003.png", "1/000000004.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_pictures_in_files_meet_the_official_captions(cc3m: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(cc3m, "--format", "cc3m", "--captions", cc3m / "Train_GCC-training.tsv")
    out = capsys.readouterr().out
    assert "1 empty caption" in out
    assert "'Train_GCC-training.tsv:2': empty caption" in out
    assert "'000000002': no picture" in out
    dataset = PairDataset.open(cc3m, 32, train=False)
    assert [dataset[number][1] for number in range(len(dataset))] == ['a "red dog', "last"]
    assert [dataset.index.key(number) for number in range(2)] == ["00000/000000000.jpg", "1/000000004.PNG"]
    assert dataset.index.dropped == {"empty caption": 1, "no picture": 1, "duplicate key": 1}


def test_a_table_may_name_files_but_none_outside(cc3m: Path) -> None:
    (cc3m / "t.csv").write_text(
        "filepath,title\n1/000000004.PNG,one\n1/000000004.PNG,two\n../x.jpg,up\n/etc/x.jpg,abs\n1/9.jpg,gone\n"
    )
    prepare(cc3m, "--format", "table", "--captions", cc3m / "t.csv", "--caption-column", "title", "--image-column", "filepath")
    index = Index.load(cc3m / "index.pt")
    assert captions(index) == ["one", "two"]
    assert index.dropped == {"picture outside its folder": 2, "no picture": 1}


def test_urls_are_written_for_img2dataset(cc3m: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(cc3m, "--format", "cc3m", "--captions", cc3m / "Train_GCC-training.tsv", "--urls")
    lines = (cc3m / "urls.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"key": "000000000", "caption": 'a "red dog', "url": "http://a/0.jpg"}
    assert len(lines) == 4
    out = capsys.readouterr().out
    assert f"img2dataset --url_list {cc3m / 'urls.jsonl'} --input_format jsonl" in out
    assert f"prepare {cc3m / 'shards'}" in out


def test_what_is_missing_is_named(cc3m: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder at"):
        prepare(tmp_path / "absent")
    with pytest.raises(ValueError, match="no shards"):
        prepare(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no caption file at"):
        prepare(cc3m, "--format", "cc3m", "--captions", "absent.tsv")
    with pytest.raises(ValueError, match=r"need a --format .* and one file of --captions .* got cc3m and 0 files"):
        prepare(cc3m, "--format", "cc3m")
    with pytest.raises(ValueError, match="needs --metadata"):
        prepare(cc3m, "--format", "yfcc15m", "--captions", cc3m / "Train_GCC-training.tsv")
    with pytest.raises(ValueError, match=r"not one usable pair in .*4 no picture"):
        prepare(tmp_path / "none", "--format", "cc3m", "--captions", cc3m / "Train_GCC-training.tsv")
    assert not (tmp_path / "none" / "index.pt").exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Rights bind: root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_folder_is_said_at_once_and_the_index_may_go_elsewhere() -> None:
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o755)
        write_shards(base, 4, 4)
        (base / "open").mkdir()
        (base / "open").chmod(0o777)
        base.chmod(0o555)
        with as_nobody():
            with pytest.raises(
                PermissionError, match=r"cannot be written to .* \(Permission denied\); give --index another place"
            ):
                prepare(base)
            prepare(base, "--index", base / "open" / "my.pt")
            assert len(PairDataset.open(base / "open" / "my.pt", 32, train=True)[0]) == 2
    finally:
        base.chmod(0o755)
        shutil.rmtree(base)


def test_a_full_disk_keeps_the_last_good_index(tmp_path: Path) -> None:
    write_shards(tmp_path, 20, 10)
    prepare_shards(tmp_path)
    good = (tmp_path / "index.pt").read_bytes()
    before, limits = signal.getsignal(signal.SIGXFSZ), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            prepare_shards(tmp_path)
        with pytest.raises(OSError, match="large"):
            make_synthetic(tmp_path / "new", 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "index.pt").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "index.pt"]


def together(barrier: Barrier, folder: Path, results: "SimpleQueue[str]") -> None:
    barrier.wait()
    for _ in range(5):
        prepare_shards(folder)
    barrier.wait()
    try:
        make_synthetic(folder / "new", 30)
        results.put("made")
    except FileExistsError:
        results.put("lost")


def test_two_processes_may_prepare_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, 20, 10)
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=functools.partial(together, barrier, tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(results.get() for _ in range(2)) == ["lost", "made"]
    assert len(PairDataset.open(tmp_path, 32, train=True)) == 20
    assert len(PairDataset.open(tmp_path / "new", 32, train=True)) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar", "index.pt", "new"]
