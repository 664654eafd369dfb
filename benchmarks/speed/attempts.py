"""One attempt after another: a number for each contender, or a row that says why there is none."""

import faulthandler
import gc
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.ledger import Key, Ledger
from benchmarks.speed.lineup import Contender
from benchmarks.speed.plan import Cell
from benchmarks.speed.rivals import Missing

RESTART = 75
"""Exit status of a process whose device, or its memory, is of no more use: another goes on."""
PATIENCE_S = 120
"""A contender that takes longer for one attempt hangs."""
OUT_OF_MEMORY = "out of memory"
NOT_REACHED = "not reached"

Found = dict[str, Any]


class Attempts:
    """Attempts until the deadline, on a device that may run out of memory, hang or die of one."""

    def __init__(self, ledger: Ledger, device: str, deadline: float, only: str = "", repetitions: int = 0) -> None:
        self.ledger, self.device, self.deadline, self.repetitions = ledger, device, deadline, repetitions
        self.only = re.compile(only)

    def wanted(self, cell: Cell, contenders: list[Contender]) -> list[tuple[Key, Contender]]:
        keys = [(Key(cell.group, cell.pairs, cell.width, cell.mode, found.name), found) for found in contenders]
        return [(key, found) for key, found in keys if self.only.search(found.name) and key not in self.ledger.rows]

    def attempt(self, key: Key, work: Callable[[], Found], late: bool = False) -> Found | None:
        """What the work gives, or None and a row that says why not."""
        if not late and time.time() > self.deadline:
            self.ledger.add(key, NOT_REACHED)
            return None
        self.ledger.begin(key)
        if self.device != "cpu":
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=sys.stderr)
        try:
            return work()
        except Exception as error:
            status = reason(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.ledger.end()
        self.ledger.add(key, status)
        print(f"  {key.name}: {status}", flush=True)
        if status == OUT_OF_MEMORY:
            gc.collect()
        self.tidy()
        return None

    def tidy(self) -> None:
        """Give memory back; leave the process where the device does not answer any more."""
        if self.device == "cpu":
            return
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            sys.exit(RESTART)

    def fits(self, contender: Contender, pairs: int) -> None:
        """Raise where a contender holds more than is free."""
        if self.device == "cpu":
            return
        needs, free = contender.matrices * 4 * pairs**2, torch.cuda.mem_get_info()[0]
        if needs > free:
            raise Missing(f"skipped: takes about {needs / 2**30:,.0f} GiB, {free / 2**30:,.0f} are free")


def reason(error: Exception) -> str:
    """What a row says of it, in one line."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, Missing):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "backend=" in text:
        return f"not available: {text}"
    return f"failed: {type(error).__name__}: {text}"
