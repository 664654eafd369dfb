"""What is said of data that cannot be used: where it is, and why. A reason's part before the colon is what is counted."""

from collections import Counter
from typing import NamedTuple


class Bad(NamedTuple):
    """A pair, row or archive that was not used, and why."""

    key: str
    reason: str


class BadSampleError(Exception):
    """A sample that cannot be used; the message is the reason."""


class Tally:
    """Counts by reason, details left out, and the first few in full.

    >>> tally = Tally()
    >>> for name, reason in [("1.jpg", "corrupt image: no PNG"), ("2.jpg", "corrupt image: cut"), ("7", "empty caption")]:
    ...     tally.add(Bad(name, reason))
    >>> print(tally)
    2 corrupt image, 1 empty caption
    """

    SHOWN = 10

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[Bad] = []

    def add(self, *bad: Bad) -> None:
        """Counts each of `bad`."""
        self.counts.update(reason.split(":")[0] for _, reason in bad)
        self.first += bad[: self.SHOWN - len(self.first)]

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common()) or "none"

    def show(self) -> None:
        """Prints the counts and the first few."""
        print(f"dropped: {self}")
        for key, reason in self.first:
            print(f"  {key!r}: {reason}")  # names may hold anything, a terminal's commands too
