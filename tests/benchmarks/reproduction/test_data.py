"""Pairs, batches and `prepare`: every bad file is a real one, and batches depend on the seed alone."""

import functools
import itertools
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from benchmarks.reproduction.data import Batch, Loader, PairDataset
from benchmarks.reproduction.index import Builder, Entry
from benchmarks.reproduction.prepare import make_synthetic, prepare_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
COUNT, SIZE = 22, 32


def tokenize(captions: list[str]) -> dict[str, Tensor]:
    return {"lengths": torch.tensor([len(caption) for caption in captions])}


def die_at(marker: Path, captions: list[str]) -> dict[str, Tensor]:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return tokenize(captions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("pairs") / "synthetic"
    make_synthetic(made, COUNT)
    return made


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Ten pictures in files, of which 1 is missing, 4 no picture, 5 cut short and 7 empty."""
    builder = Builder()
    builder.add_files([Entry(f"{number}.jpg", 0, 0, f"caption {number}") for number in range(10)])
    for number in range(10):
        Image.new("RGB", (40 + number, 30), (25 * number, 0, 99)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "4.jpg").write_text("<html>404</html>")
    os.truncate(tmp_path / "5.jpg", 400)
    (tmp_path / "7.jpg").write_bytes(b"")
    builder.finish(tmp_path, {}).save(tmp_path / "index.pt")
    return tmp_path


def equal(batch: Batch, other: Batch) -> bool:
    return (
        torch.equal(batch.images, other.images)
        and batch.captions == other.captions
        and torch.equal(batch.tokens["lengths"], other.tokens["lengths"])
        and batch.bad == other.bad
    )


def same(batches: list[Batch], others: list[Batch]) -> bool:
    return len(batches) == len(others) and all(map(equal, batches, others))


def test_an_item_is_a_picture_and_its_caption(folder: Path) -> None:
    dataset = PairDataset.open(folder, SIZE, train=False)
    assert len(dataset) == COUNT
    pixels, caption = dataset[COUNT - 1]
    assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), torch.uint8)
    with tarfile.open(folder / "00001.tar") as archive:
        file = archive.extractfile("000010010.txt")
        assert file is not None
        assert caption == file.read().decode()


def test_a_batch_has_normalised_images_captions_and_tokens(folder: Path) -> None:
    batch = next(Loader(PairDataset.open(folder, SIZE, train=False), tokenize, batch_size=5).epoch(0))
    pixels, caption = PairDataset.open(folder, SIZE, train=False)[3]
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(batch.images[3], ((pixels / 255 - mean) / std).permute(2, 0, 1))
    assert batch.images.shape == (5, 3, SIZE, SIZE)
    assert batch.images.is_contiguous()
    assert batch.captions[3] == caption
    assert batch.tokens["lengths"].tolist() == [len(text) for text in batch.captions]
    assert batch.bad == []


@given(
    batch=st.integers(1, 6), world=st.integers(1, 4), seed=st.integers(0, 2**70), epoch=st.integers(0, 3),
    train=st.booleans(), drop_last=st.booleans(), data=st.data(),
)  # fmt: skip
def test_shares_of_ranks_make_one_process_and_a_resumed_epoch_is_the_rest(
    folder: Path, batch: int, world: int, seed: int, epoch: int, train: bool, drop_last: bool, data: st.DataObject
) -> None:
    if drop_last and batch * world > COUNT:
        return
    dataset = PairDataset.open(folder, 8, train)
    make = functools.partial(Loader, dataset, tokenize, seed=seed, drop_last=drop_last)
    loaders = [make(batch_size=batch, rank=rank, world_size=world) for rank in range(world)]
    ranks = [list(loader.epoch(epoch)) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks]
    whole = list(make(batch_size=batch * world).epoch(epoch))
    for step, expected in enumerate(whole):
        parts = [batches[step] for batches in ranks if step < len(batches)]
        assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
        assert [*itertools.chain(*(part.captions for part in parts))] == expected.captions
    rank = data.draw(st.integers(0, world - 1))
    start = data.draw(st.integers(0, len(loaders[rank])))
    assert same(list(loaders[rank].epoch(epoch, start)), ranks[rank][start:])


def test_batches_are_the_same_for_any_number_of_workers(folder: Path, damaged: Path) -> None:
    for path, train in ((folder, True), (damaged, True), (damaged, False)):
        dataset = PairDataset.open(path, SIZE, train)
        expected = list(Loader(dataset, tokenize, batch_size=4, seed=3).epoch(1))
        for workers in (1, 3) if path == folder else (2,):
            assert same(list(Loader(dataset, tokenize, batch_size=4, seed=3, workers=workers).epoch(1, 1)), expected[1:])


def test_an_epoch_has_every_pair_once_and_the_next_in_another_order(folder: Path) -> None:
    dataset = PairDataset.open(folder, 8, train=True)
    captions = sorted(dataset.index.captions[number] for number in range(COUNT))
    orders, pictures = [], []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = list(Loader(dataset, tokenize, batch_size=5, seed=seed, drop_last=False).epoch(epoch))
        orders.append([*itertools.chain(*(batch.captions for batch in batches))])
        assert sorted(orders[-1]) == captions
        places = sorted(range(COUNT), key=orders[-1].__getitem__)
        pictures.append(torch.cat([batch.images for batch in batches])[places])
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(pictures, 2))  # cut out elsewhere
    assert orders[0] != orders[1] != orders[2] != orders[0]
    in_order = Loader(PairDataset.open(folder, 8, train=False), tokenize, batch_size=COUNT)
    assert equal(next(in_order.epoch(0)), next(in_order.epoch(1)))
    assert sorted(next(in_order.epoch(0)).captions) == captions


def test_bad_samples_are_replaced_in_training_and_left_out_of_a_test(damaged: Path) -> None:
    reasons = {"1.jpg": "cannot be read", "4.jpg": "corrupt image", "5.jpg": "corrupt image", "7.jpg": "corrupt image"}
    for epoch in range(3):
        (batch,) = Loader(PairDataset.open(damaged, SIZE, train=True), tokenize, batch_size=10).epoch(epoch)
        assert len(batch.captions) == len(batch.images) == 10
        assert set(batch.captions) <= {f"caption {number}" for number in (0, 2, 3, 6, 8, 9)}
        assert {key: reason.split(":")[0] for key, reason in batch.bad} == reasons
    (batch,) = Loader(PairDataset.open(damaged, SIZE, train=False), tokenize, batch_size=10).epoch(0)
    assert batch.captions == [f"caption {number}" for number in (0, 2, 3, 6, 8, 9)]
    assert {key: reason.split(":")[0] for key, reason in batch.bad} == reasons
    alone = list(Loader(PairDataset.open(damaged, SIZE, train=False), tokenize, batch_size=1).epoch(0))[4]
    assert (alone.images.shape, alone.captions, len(alone.bad)) == ((0, 3, SIZE, SIZE), [], 1)


def test_a_folder_that_vanishes_stops_the_epoch(damaged: Path) -> None:
    dataset = PairDataset.open(damaged, SIZE, train=True)
    for path in damaged.glob("*.jpg"):
        path.unlink()
    with pytest.raises(RuntimeError, match=r"100 pairs in a row could not be read, the last one .*No such file"):
        list(Loader(dataset, tokenize, batch_size=2).epoch(0))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")  # keeps the times
    return tmp_path / "copy"


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(reversed(path.read_bytes())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, "No such file"),
        (rewrite, "changed since it was indexed"),
        (lambda path: os.truncate(path, 5000), "5,000 bytes, .* when it was indexed"),
    ],
)
def test_an_index_that_no_longer_fits_its_shards_is_refused_or_its_pairs_are_bad(
    copy: Path, change: object, message: str
) -> None:
    assert callable(change)
    dataset = PairDataset.open(copy, SIZE, train=True)
    change(copy / "00001.tar")
    (batch,) = Loader(dataset, tokenize, batch_size=COUNT).epoch(0)
    assert len(batch.captions) == COUNT
    assert {bad.key.split("/")[0] for bad in batch.bad} == {"00001.tar"}
    with pytest.raises(ValueError, match=rf"00001\.tar no longer fits its index: .*{message}.*run prepare again on"):
        PairDataset.open(copy, SIZE, train=True)
    if change is not Path.unlink:
        prepare_shards(copy)
        PairDataset.open(copy, SIZE, train=True)


def test_an_index_that_is_absent_damaged_empty_or_of_another_version_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index at .*index\.pt; make it with: .* prepare"):
        PairDataset.open(tmp_path, SIZE, train=True)
    index = copy / "index.pt"
    whole = index.read_bytes()
    for content in (b"", b"junk", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[:500] + bytes(400) + whole[900:]):
        index.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            PairDataset.open(copy, SIZE, train=True)
    torch.save({"version": 99}, index)
    with pytest.raises(ValueError, match="version 99"):
        PairDataset.open(copy, SIZE, train=True)
    Builder().finish(copy, {"empty caption": 3}).save(index)
    with pytest.raises(ValueError, match=r"has no pairs; it dropped \{'empty caption': 3\}"):
        PairDataset.open(copy, SIZE, train=True)


def test_a_moved_data_set_is_found(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy, tmp_path / "elsewhere")
    assert len(PairDataset.open(tmp_path / "elsewhere", SIZE, train=True)[0]) == 2


def test_an_index_written_again_meanwhile_is_noticed_by_workers(copy: Path) -> None:
    dataset = PairDataset.open(copy, SIZE, train=True)
    prepare_shards(copy)
    assert len(list(Loader(dataset, tokenize, batch_size=11, workers=1).epoch(0))) == 2  # it says the same
    os.utime(copy / "00001.tar")
    prepare_shards(copy)
    with pytest.raises(ValueError, match="was written again while it was in use"):
        list(Loader(dataset, tokenize, batch_size=2, workers=1).epoch(0))


def test_a_worker_that_is_killed_ends_the_epoch_with_an_error(folder: Path, tmp_path: Path) -> None:
    loader = Loader(
        PairDataset.open(folder, SIZE, train=True), functools.partial(die_at, tmp_path / "died"), batch_size=2, workers=1
    )
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        list(loader.epoch(0))


def test_loader_names_what_is_wrong(folder: Path) -> None:
    dataset = PairDataset.open(folder, SIZE, train=True)
    cases: list[dict[str, Any]] = [
        {"batch_size": 0},
        {"batch_size": 1, "rank": 2},
        {"batch_size": 1, "workers": -1},
        {"batch_size": 1, "seed": -1},
    ]
    for wrong in cases:
        with pytest.raises(ValueError, match="Loader needs batch_size >= 1"):
            Loader(dataset, tokenize, **wrong)
    with pytest.raises(ValueError, match="22 pairs, fewer than one global batch of 12 x 2"):
        Loader(dataset, tokenize, batch_size=12, world_size=2)
    with pytest.raises(ValueError, match="start must be a step of the epoch, 0 to 5, got 6"):
        list(Loader(dataset, tokenize, batch_size=4).epoch(0, 6))
