"""Time, memory, accuracy and profile of contenders on one device."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.batch import Batch
from benchmarks.measure import Timing, once, time_graph
from benchmarks.roofline import ceilings
from benchmarks.speed import accuracy, lineup, profiles
from benchmarks.speed.attempts import NOT_REACHED, RESTART, Attempts, Found
from benchmarks.speed.contenders import gradients
from benchmarks.speed.ledger import Key
from benchmarks.speed.lineup import Contender
from benchmarks.speed.memory import peak_beyond
from benchmarks.speed.plan import MOST_HELD, Cell

AIM_S = {"step": 0.4, "forward": 0.15}
"""What all repetitions of a contender should take."""
MOST_REPETITIONS = 21
TAKE_TURNS_BELOW = 32768


@dataclass
class Warm:
    """A contender that ran once: what is timed of it, how often, and what was seen."""

    runs: dict[str, Callable[[], object]]
    repetitions: dict[str, int]
    found: Found
    graph: bool
    times: dict[str, list[float]] = field(default_factory=dict)


class Bench(Attempts):
    """Runs cells of the plan until the deadline, and writes a row for every contender."""

    def run(self, cell: Cell) -> None:
        contenders = lineup.contenders(cell)
        if cell.stage == "accuracy":
            self.each(cell, contenders, self._accuracy)
        elif cell.stage == "profile":
            self.each(cell, contenders, self._profile)
        else:
            self.timed(cell, contenders, cell.pairs < TAKE_TURNS_BELOW)

    # ---- times and memory ----

    def timed(self, cell: Cell, contenders: list[Contender], take_turns: bool) -> None:
        """A row of times for each contender; in turns, so that a disturbance meets them alike, or one after the other.

        Times are the clock's; on a CUDA device another row has the time of the same as a graph, the device's alone.
        """
        pending = self.wanted(cell, contenders)
        if not pending:
            return
        batch = cell.batch(self.device)
        waiting: dict[Key, Warm] = {}
        for key, contender in pending:
            self.tidy()
            found = self.attempt(key, lambda contender=contender: {"warm": self._warm(contender, batch, cell.pairs)})  # type: ignore[misc]
            if found is None:
                continue
            waiting[key] = found["warm"]
            del found
            if not take_turns:
                self.finish(waiting, take_turns)
        self.finish(waiting, take_turns)

    def _warm(self, contender: Contender, batch: Any, pairs: int) -> Warm:
        self.fits(contender, pairs)
        value = contender.make(batch)
        runs: dict[str, Callable[[], object]] = {"forward": value}
        if contender.family:
            runs = {"step": lambda: gradients(batch, value), "forward": value}
        whole = next(iter(runs.values()))
        found: Found = {}
        begun = time.perf_counter()
        seconds = self._first(whole, found)
        found["first_run_s"] = time.perf_counter() - begun
        if found["first_run_s"] < 10:  # compiled by now: a second look at time and memory
            seconds = self._first(whole, found)
        most = {name: 1 if seconds > 2 else max(3, min(MOST_REPETITIONS, int(aim / seconds))) for name, aim in AIM_S.items()}
        if seconds > 0.3:
            most["forward"] = 1
        return Warm(runs, {name: self.repetitions or most[name] for name in runs}, found, contender.graph)

    def _first(self, run: Callable[[], object], found: Found) -> float:
        """Seconds of a run, its peak noted."""
        spent = [0.0]

        def timed() -> None:
            spent[0] = once(run, self.device) / 1e3

        if self.device == "cpu":
            timed()
        else:
            found["peak_bytes"] = peak_beyond(timed, self.device)
        return spent[0]

    def finish(self, waiting: dict[Key, Warm], take_turns: bool) -> None:
        """Repeat what is warm, write its rows, and empty it."""
        begin = -1 if take_turns and self.device != "cpu" else 0
        # Others' warm-ups emptied the allocator's cache: an untimed round fills it.
        for count in range(begin, max((n for warm in waiting.values() for n in warm.repetitions.values()), default=0)):
            for key, warm in list(waiting.items()):
                for name, run in warm.runs.items():
                    if key not in waiting or count >= warm.repetitions[name]:
                        continue
                    found = self.attempt(key, lambda run=run: {"ms": once(run, self.device)}, late=True)  # type: ignore[misc]
                    if found is None:
                        del waiting[key]
                    elif count >= 0:
                        warm.times.setdefault(name, []).append(found["ms"])
        for key, warm in waiting.items():
            for name, times in warm.times.items():
                warm.found[name] = Timing(tuple(round(ms, 5) for ms in times)).row()
            self.ledger.add(key, **warm.found, in_turns=take_turns)
        if self.device.startswith("cuda"):
            captured = [self._graph(key, next(iter(warm.runs.values()))) for key, warm in waiting.items() if warm.graph]
            if not all(captured):  # the allocator goes on waiting for the capture's end, and frees nothing
                sys.exit(RESTART)
        waiting.clear()

    def _graph(self, key: Key, run: Callable[[], object]) -> bool:
        """A row of the device's time alone; whether the process is still good for others."""
        if key.pairs > MOST_HELD:  # nothing but the device counts there
            return True
        key = key._replace(group=f"{key.group}, graph")
        found = self.attempt(key, lambda: {"replay": time_graph(run, self.repetitions or 10, self.device).row()})
        if found is not None:
            self.ledger.add(key, **found)
        return self.ledger.rows[key]["status"] in ("ok", NOT_REACHED)

    # ---- one number each ----

    def each(self, cell: Cell, contenders: list[Contender], look: Callable[[Contender, Batch], Found]) -> None:
        """A row of what `look` finds for each contender."""
        pending = self.wanted(cell, contenders)
        if not pending:
            return
        batch = cell.batch(self.device)
        assert isinstance(batch, Batch)
        for key, contender in pending:
            self.tidy()
            found = self.attempt(key, lambda contender=contender: look(contender, batch))  # type: ignore[misc]
            if found is not None:
                self.ledger.add(key, **found)

    def _accuracy(self, contender: Contender, batch: Batch) -> Found:
        return accuracy.error(batch, contender.make(batch), contender.family)

    def _profile(self, contender: Contender, batch: Batch) -> Found:
        value = contender.make(batch)
        return profiles.profiled(lambda: gradients(batch, value), self.device)

    def ceilings(self, **sizes: int) -> None:
        """Into the ledger, once."""
        key = Key("ceilings", 0, 0, "", "this device")
        if key not in self.ledger.rows:
            found = self.attempt(key, lambda: ceilings.measure(self.device, **sizes))
            if found is not None:
                self.ledger.add(key, **found)
