"""Which ranks are missing where a collective fails."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import torch.distributed as dist

PATIENCE_SECONDS = 5.0
"""In which ranks that are alive tell those that miss somebody."""

_failures: Counter[str] = Counter()
"""Failed collectives of each process group, by its name."""


@contextmanager
def naming_missing_ranks(group: Any) -> Iterator[None]:
    """Where a collective fails, an error that says which ranks give no sign any more."""
    try:
        yield
    except RuntimeError as error:
        _failures[_name_of(group)] += 1
        raise RuntimeError(
            f"the ranks could not be gathered: {_missing_ranks(group)}. A rank that gives none has died, hangs, never called the "
            f"loss or still waits for one that has; a loss that one rank calls alone needs world_size=1. ({error})"
        ) from error


def _name_of(group: Any) -> str:
    known: Any = dist.group.WORLD if group is None else group
    return str(known.group_name)


def _missing_ranks(group: Any) -> str:
    """The ranks that leave no sign in the store of the rendezvous, in words."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    failure = f"otter_losses/{_name_of(group)}/{_failures[_name_of(group)]}"
    signs = [f"{failure}/{other}" for other in range(size)]
    missing: list[str] = []

    def look() -> None:
        with suppress(RuntimeError):
            store = dist.distributed_c10d._get_default_store()
            store.set(signs[rank], "alive")
            end = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < end and not store.check(signs):
                time.sleep(0.1)
            missing[:] = [str(other) for other, sign in enumerate(signs) if not store.check([sign])] or ["none"]

    # A store behind a link that is down answers neither yes nor no, whatever its timeout.
    looking = Thread(target=look, daemon=True)
    looking.start()
    looking.join(2 * PATIENCE_SECONDS)
    if not missing:
        return f"nor does the store of the rendezvous answer, so that nobody knows here which of the {size} ranks are lost"
    ranks = "" if missing == ["none"] else "rank "
    return f"{ranks}{', '.join(missing)} of {size} gave no sign within {PATIENCE_SECONDS:g} seconds"
