"""How far the command is, on stderr."""

import sys
import time
from typing import TextIO


class Progress:
    """Told of a stage, how much of it is done and how much there is.

    A terminal sees one line that changes, a log a line every five seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else 5.0
        self.stage, self.first, self.done, self.began, self.shown = "", 0, 0, 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done < self.done:
            self.close()
            self.stage, self.first, self.began, self.shown = stage, done, now, now
        self.done = done
        if now - self.shown >= self.every:
            self.shown = now
            left = f", {duration((now - self.began) * (total - done) / (done - self.first))} left" if done > self.first else ""
            self._show(f"{stage}: {100 * done // max(total, 1)} %{left}")

    def close(self) -> None:
        """The stage is over."""
        if self.stage:
            self._show(f"{self.stage}: done in {duration(time.monotonic() - self.began)}")
            self.stream.write("\n" if self.live else "")
            self.stage = ""

    def _show(self, line: str) -> None:
        self.stream.write(f"\r{line}\x1b[K" if self.live else f"{line}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """
    >>> duration(4.2), duration(130), duration(8000)
    ('4 s', '2 min 10 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
