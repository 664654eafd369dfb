"""`train`: from prepared pairs and a configuration to a trained model, however often it is interrupted.

    python -m benchmarks.reproduction train otter --data DATA --run RUN
    torchrun --nproc-per-node 8 -m benchmarks.reproduction train otter --data DATA --run RUN

The same command goes on with a run that was stopped or killed, on one device to the bit (on a GPU with
``train.deterministic=true``), also on another number of devices; torchrun's ``--max-restarts`` does so by itself. A run's folder:

    config.json             the settings
    log.jsonl               a line of JSON per event: started, train (loss, lr, scales, images_per_second), targets (how the
                            teacher's targets look), saved, stopped, failed, finished
    bad.RANK.jsonl          the samples that could not be used, and why
    tensorboard/            the same numbers for TensorBoard
    checkpoints/STEP.pt     the two newest checkpoints; `checkpoint` says what they hold

It stops with an error, and keeps the last good checkpoint, when the loss or a weight is not a number, when more than
``data.max_bad_share`` of the samples are bad, when a checkpoint cannot be written or a worker is lost. At SIGTERM it saves and
ends with status 143 (within ``train.log_every`` steps).
"""

import argparse
import json
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reproduction import checkpoint, models
from benchmarks.reproduction.checkpoint import CheckpointError
from benchmarks.reproduction.config import Config, ConfigError, load
from benchmarks.reproduction.data import Loader, PairDataset
from benchmarks.reproduction.journal import Journal
from benchmarks.reproduction.place import Place, joined
from benchmarks.reproduction.trainer import Trainer

FEW = 1000
"""Samples below which the share of bad ones says little: it is taken of at least so many."""
STOPPED = 128 + signal.SIGTERM


class TrainingError(RuntimeError):
    """A run that must not go on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="+", help="TOML files, or names of those in configs/; later ones win")
    parser.add_argument("--data", type=Path, help="folder or index that `prepare` made")
    parser.add_argument("--run", type=Path, help="the run's folder, on a disk that all nodes share; a run that is there goes on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as train.batch=256")


def run(options: argparse.Namespace) -> None:
    if options.data is None or options.run is None:
        raise ConfigError("train needs --data and --run; --dry-run does without.")
    config = load(options.config, options.set)
    with joined() as place:
        train(config, options.data, options.run, place)


def train(config: Config, data: Path, folder: Path, place: Place, until: int | None = None) -> None:
    """Trains to the end, or to step `until`, from the newest checkpoint in the folder or from the start.

    Raises:
        ConfigError, CheckpointError, TrainingError, FileNotFoundError, ValueError: as the module says; what is wrong and what to
            do about it.
        SystemExit: at SIGTERM, after saving.
    """
    if config.train.batch % place.size:
        raise ConfigError(f"train.batch is {config.train.batch} for {place.size} processes; need a multiple of them.")
    dataset = PairDataset.open(data, config.data.size, train=True)
    loader = Loader(
        dataset,
        models.tokenizer(config.model),
        batch_size=config.train.batch // place.size,
        rank=place.rank,
        world_size=place.size,
        seed=config.train.seed,
        workers=config.data.workers,
    )
    state = checkpoint.newest(folder / "checkpoints")
    trainer = Trainer(config, place, len(dataset), config.train.epochs * len(loader), state)
    del state
    if place.sums([trainer.step]) != [place.size * trainer.step]:
        raise CheckpointError(f"processes found other checkpoints in {folder} than this one; need a folder that all nodes share.")
    with Journal(folder, place, trainer.step, trainer.steps, config.train.batch) as journal, termination() as terminated:
        if place.rank == 0:
            (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
        journal.event("started", trainer.step, steps=trainer.steps, processes=place.size, device=str(place.device))
        try:
            _Loop(config, folder, trainer, loader, journal, terminated).run(trainer.steps if until is None else until)
        except Exception as error:
            with suppress(OSError):  # the log may be on the disk that is full
                journal.event("failed", trainer.step, error=f"{type(error).__name__}: {error}")
            kept = checkpoint.kept(folder / "checkpoints")
            journal.say(f"Stopped after step {trainer.step}. {kept} The same command goes on from there.")
            raise


class _Loop:
    def __init__(
        self, config: Config, folder: Path, trainer: Trainer, loader: Loader, journal: Journal, terminated: threading.Event
    ) -> None:
        self.config, self.trainer, self.loader, self.journal, self.terminated = config, trainer, loader, journal, terminated
        self.place, self.checkpoints = trainer.place, folder / "checkpoints"
        self.losses: list[Tensor] = []
        self.seen = self.bad = 0

    def run(self, until: int) -> None:
        trainer, settings = self.trainer, self.config.train
        while trainer.step < until:
            for batch in self.loader.epoch(*divmod(trainer.step, len(self.loader))):
                self.losses.append(trainer.update(batch))
                self.seen += len(batch.images)
                self.bad += len(batch.bad)
                self.journal.skipped(trainer.step, batch.bad)
                self.journal.advance()
                last = trainer.step == until
                saves = last or trainer.step % settings.save_every == 0
                if saves or trainer.step % settings.log_every == 0:
                    stops = self._look()
                    if saves or stops:
                        self._save()
                    if stops:
                        self.journal.event("stopped", trainer.step)
                        self.journal.say(f"Told to stop: saved step {trainer.step}. The same command goes on from there.")
                        raise SystemExit(STOPPED)
                if self.config.loss.teacher and trainer.step % settings.diagnose_every == 0:
                    self.journal.numbers("targets", trainer.step, trainer.diagnose())
                if last:
                    break
        if trainer.step == trainer.steps:
            self.journal.event("finished", trainer.step)

    def _look(self) -> bool:
        """Measures and judges the steps since the last look; whether a process was told to stop."""
        trainer = self.trainer
        losses = torch.stack(self.losses).tolist()
        seen, bad, stops = self.place.sums([self.seen, self.bad, self.terminated.is_set()])
        trainer.seen += int(seen)
        trainer.bad += int(bad)
        self.losses, self.seen, self.bad = [], 0, 0
        for before, loss in enumerate(reversed(losses)):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {trainer.step - before}. Try a smaller train.lr, or train.precision=bf16 or "
                    "fp32, in a new run."
                )
        mean, rate = sum(losses) / len(losses), self.journal.rate()
        self.journal.numbers(
            "train",
            trainer.step,
            {
                "epoch": trainer.step / len(self.loader),
                "loss": mean,
                "lr": trainer.optimizer.param_groups[0]["lr"],
                **trainer.scales(),
                "images_per_second": rate,
                "bad": trainer.bad,
            },
        )
        self.journal.progress(trainer.step, mean, rate)
        share = trainer.bad / max(trainer.seen + trainer.bad, FEW)
        if share > self.config.data.max_bad_share:
            raise TrainingError(
                f"{trainer.bad} of {trainer.seen + trainer.bad} samples were bad, more than data.max_bad_share = "
                f"{self.config.data.max_bad_share:g} allows; {self.checkpoints.parent}/bad.*.jsonl name them. Repair or "
                "`prepare` the data again, or allow more."
            )
        return stops > 0

    def _save(self) -> None:
        broken = self.trainer.broken()
        if broken:
            raise TrainingError(
                f"{broken} is not finite after step {self.trainer.step}, though the loss still was. Try a smaller train.lr, or "
                "train.precision=bf16 or fp32, in a new run."
            )
        if self.place.rank == 0:
            path = checkpoint.save(self.checkpoints, self.trainer.state())
            self.journal.event("saved", self.trainer.step, path=path.name)
        self.place.wait()


@contextmanager
def termination() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process; a second one ends it."""
    event = threading.Event()

    def noted(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, noted)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
