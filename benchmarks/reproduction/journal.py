"""What a run tells: a line of JSON for every event, TensorBoard, a bar with images per second and the time left."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from benchmarks.reproduction.data import Bad
from benchmarks.reproduction.place import Place


class Journal:
    """The log of a run, kept by rank 0; every rank names its own bad samples.

    A line of ``log.jsonl`` has at least `time`, `event` and `step`. A run that goes on after it was killed writes some steps
    again: the lines after the last ``"event": "started"`` count.
    """

    def __init__(self, folder: Path, place: Place, step: int, steps: int, batch: int) -> None:
        self.place, self.steps, self.batch = place, steps, batch
        self.quiet = place.rank > 0
        folder.mkdir(parents=True, exist_ok=True)
        self.bad = _lines(folder / f"bad.{place.rank}.jsonl")
        self.log = None if self.quiet else _lines(folder / "log.jsonl")
        self.board = None if self.quiet else _board(folder / "tensorboard", step)
        self.bar = tqdm(
            total=steps * batch, initial=step * batch, unit="img", unit_scale=True, smoothing=0.05, dynamic_ncols=True,
            disable=True if self.quiet else None,
        )  # fmt: skip
        self.since, self.images = time.monotonic(), 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each in (self.bar, self.board, self.log, self.bad):
            if each is not None:
                each.close()

    def event(self, event: str, step: int, **fields: Any) -> None:
        """One line of the log."""
        if self.log is not None:
            _write(self.log, {"time": round(time.time(), 3), "event": event, "step": step, **fields})

    def say(self, text: str) -> None:
        """A line for who watches, beside the bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def numbers(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Measurements of a step: log and TensorBoard."""
        self.event(event, step, **values)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{event}/{name}", value, step)

    def advance(self) -> None:
        """One batch further."""
        self.images += self.batch
        self.bar.update(self.batch)

    def rate(self) -> float:
        """Images per second of all processes since the last call."""
        now = time.monotonic()
        rate = self.images / max(now - self.since, 1e-9)
        self.since, self.images = now, 0
        return rate

    def progress(self, step: int, loss: float, rate: float) -> None:
        """In the bar, or a line where there is no terminal to draw one on."""
        self.bar.set_postfix(step=step, loss=f"{loss:.3f}")
        if self.bar.disable:
            hours = (self.steps - step) * self.batch / max(rate, 1e-9) / 3600
            self.say(f"step {step} of {self.steps}: loss {loss:.4f}, {rate:,.0f} images/s, {hours:.2f} h left")

    def skipped(self, step: int, bad: Sequence[Bad]) -> None:
        """Names samples that could not be used."""
        for key, reason in bad:
            _write(self.bad, {"step": step, "key": key, "reason": reason})


def _lines(path: Path) -> IO[str]:
    """A file to append lines to; one that a killed process left unfinished is ended first."""
    file = path.open("a+", encoding="utf-8")
    if file.tell():
        file.seek(file.tell() - 1)
        if file.read(1) != "\n":
            file.write("\n")
    return file


def _write(file: IO[str], fields: Mapping[str, Any]) -> None:
    file.write(json.dumps(fields) + "\n")
    file.flush()


def _board(folder: Path, step: int) -> Any:
    if find_spec("tensorboard") is None:
        print("tensorboard is not installed: log.jsonl alone has the measurements.", file=sys.stderr)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=step + 1)
