"""Pairs for training and testing: a data set that `prepare` indexed, and batches of it that depend on the seed alone."""

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.reproduction.bad import Bad, BadSampleError
from benchmarks.reproduction.images import crop, decode, normalize
from benchmarks.reproduction.index import INDEX_NAME, Index
from benchmarks.reproduction.workers import worker_context

__all__ = ["Bad", "Batch", "Loader", "PairDataset"]

Tokenize = Callable[[list[str]], dict[str, Tensor]]
ATTEMPTS = 100


class Batch(NamedTuple):
    """B pairs: images (B, 3, S, S) of float32, and the pairs that were met on the way and could not be used."""

    images: Tensor
    captions: list[str]
    tokens: dict[str, Tensor]
    bad: list[Bad]


class PairDataset(Dataset[tuple[Tensor, str]]):
    """The pairs of an indexed data set; item i is the picture, uint8 (size, size, 3), and its caption.

    A picture is cut out at random when `train` is set, else from the middle. A bad sample raises `BadSampleError`; `Loader` goes
    on without it.
    """

    def __init__(self, path: Path, size: int, train: bool) -> None:
        self.path, self.size, self.train = path, size, train
        self._stamp = os.stat(path).st_mtime_ns if path.is_file() else 0

    @classmethod
    def open(cls, path: str | Path, size: int, train: bool) -> "PairDataset":
        """The data set in a folder, or the one that an index file describes.

        Raises:
            FileNotFoundError: there is no index; the message says how to make it.
            ValueError: the index is damaged or empty, or no longer fits its shards.
        """
        path = Path(path)
        dataset = cls(path / INDEX_NAME if path.is_dir() else path, size, train)
        dataset.index.check()
        return dataset

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        return self.read(number, torch.default_generator)

    def read(self, number: int, generator: torch.Generator) -> tuple[Tensor, str]:
        """Item `number`, its crop drawn with `generator`."""
        image = decode(self.index.read(number), self.size)
        return crop(image, self.size, generator if self.train else None), self.index.captions[number]

    @cached_property
    def index(self) -> Index:
        index = Index.load(self.path)
        if os.stat(self.path).st_mtime_ns != self._stamp:
            raise ValueError(f"the index {self.path} was written again while it was in use; start again")
        return index

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "index"}  # a worker maps the file anew: no copy


class Loader:
    """Batches of one rank, the same whatever the number of workers and wherever an epoch is taken up again.

    Order and crops depend on (seed, epoch, pair) alone. Ranks 0 .. W-1 take consecutive shares of one global batch, so that
    W ranks of B see what one rank of W B sees. A training set is shuffled anew each epoch and a bad sample is replaced by
    another one, drawn at random; a test set keeps its order and a bad sample is left out. Both are reported in `Batch.bad`.

    Args:
        tokenize: what makes B captions into tensors of B rows; run in the workers, so it must be picklable.
        batch_size: pairs per rank.
        workers: processes that read and decode; 0 does it in this one.
        drop_last: leave out the last, smaller global batch. Otherwise it is shared out as evenly as it can be, and a rank
            that it leaves nothing for makes a step less.
    """

    def __init__(
        self, dataset: PairDataset, tokenize: Tokenize, *, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0,
        workers: int = 0, drop_last: bool = True,
    ) -> None:  # fmt: skip
        if batch_size < 1 or workers < 0 or seed < 0 or not 0 <= rank < world_size:
            raise ValueError(
                "Loader needs batch_size >= 1, workers >= 0, seed >= 0 and 0 <= rank < world_size, "
                f"got batch_size={batch_size}, workers={workers}, seed={seed}, rank={rank}, world_size={world_size}"
            )
        if drop_last and len(dataset) < batch_size * world_size:
            raise ValueError(
                f"the data set has {len(dataset)} pairs, fewer than one global batch of {batch_size} x {world_size}; "
                "take a smaller batch_size, or drop_last=False"
            )
        self.dataset, self.tokenize, self.batch_size, self.rank, self.world_size = dataset, tokenize, batch_size, rank, world_size
        self.seed, self.workers, self.drop_last = seed, workers, drop_last

    def __len__(self) -> int:
        """Steps of this rank in an epoch."""
        steps, rest = divmod(len(self.dataset), self.batch_size * self.world_size)
        return steps + (not self.drop_last and rest > self.rank)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on; those before are not read."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be a step of the epoch, 0 to {len(self)}, got {start}")
        yield from DataLoader(
            _Batches(self.dataset, self.tokenize, self.seed, epoch),
            sampler=self._shares(epoch)[start:],
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context=worker_context(__name__) if self.workers else None,
        )

    def _shares(self, epoch: int) -> list[Tensor]:
        """The pairs of each step."""
        count = len(self.dataset)
        order = torch.randperm(count, generator=_generator(self.seed, epoch)) if self.dataset.train else torch.arange(count)
        batches = torch.split(order, self.batch_size * self.world_size)
        return [batch.tensor_split(self.world_size)[self.rank] for batch in batches[: len(self)]]


class _Batches(Dataset[Batch]):
    """What runs in a worker: from the numbers of the pairs to the batch."""

    def __init__(self, dataset: PairDataset, tokenize: Tokenize, seed: int, epoch: int) -> None:
        self.dataset, self.tokenize, self.seed, self.epoch = dataset, tokenize, seed, epoch

    def __getitem__(self, numbers: Tensor) -> Batch:
        bad: list[Bad] = []
        samples = [sample for number in numbers.tolist() if (sample := self._read(number, bad))]
        pixels = (
            torch.stack([sample[0] for sample in samples]) if samples else torch.empty(0, self.dataset.size, self.dataset.size, 3)
        )
        captions = [sample[1] for sample in samples]
        return Batch(normalize(pixels), captions, self.tokenize(captions) if captions else {}, bad)

    def _read(self, number: int, bad: list[Bad]) -> tuple[Tensor, str] | None:
        generator = _generator(self.seed, self.epoch, number + 1)
        for _ in range(ATTEMPTS if self.dataset.train else 1):
            try:
                return self.dataset.read(number, generator)
            except BadSampleError as error:
                bad.append(Bad(self.dataset.index.key(number), str(error)))
                number = int(torch.randint(len(self.dataset), (), generator=generator))
        if self.dataset.train:
            raise RuntimeError(
                f"{ATTEMPTS} pairs in a row could not be read, the last one {bad[-1].key}: {bad[-1].reason}. "
                f"Is {self.dataset.index.root} still there and whole?"
            )
        return None


def _generator(*entropy: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
