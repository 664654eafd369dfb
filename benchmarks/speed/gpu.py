"""Everything on a GPU: time, memory and accuracy of the losses and of the targets alone, against the arithmetic people run today,
the released one and other projects' kernels; and where the time goes, against the device's own ceilings.

    python -m benchmarks.gpu                              # about 6 minutes on an H200
    python -m benchmarks.gpu --device cpu --pairs 32 --widths 8 --budget-seconds 30 --output somewhere    # to try the machinery

Writes ``gpu.json``, after each row, and ``gpu.md`` to the folder given. Times are medians of device events around one run, the
cache overwritten before it; below N = 32,768 all contenders of a size take turns, above each has its own. Memory is the
allocator's peak beyond the inputs. What fails, is missing, does not fit or is not reached within the budget is a row that says
so. A process that a kernel breaks or hangs is ended and the rest is run in another.
"""

import argparse
import contextlib
import faulthandler
import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, Timing, machine, once, time_graph
from benchmarks.roofline import ceilings
from benchmarks.speed import accuracy, lineup, profiles
from benchmarks.speed import report as tables
from benchmarks.speed.contenders import Batch, gradients
from benchmarks.speed.ledger import Key, Ledger
from benchmarks.speed.lineup import Cell, Contender
from benchmarks.speed.memory import peak_beyond
from benchmarks.speed.rivals import Missing

RESTART = 75
"""Exit status of a process whose device no longer answers."""
PATIENCE_S = 120
"""A contender that takes longer for one attempt hangs."""
OUT_OF_MEMORY = "out of memory"
AIM_S = {"step": 0.4, "forward": 0.15}
"""What all repetitions of a contender should take."""
MOST_REPETITIONS = 21
TAKE_TURNS_BELOW = 32768

Found = dict[str, Any]


@dataclass
class Warm:
    """A contender that ran once: what is timed of it, how often, and what was seen."""

    runs: dict[str, Callable[[], object]]
    repetitions: dict[str, int]
    found: Found
    times: dict[str, list[float]] = field(default_factory=dict)


class Bench:
    """Runs cells of the plan until the deadline, and writes a row for every contender."""

    def __init__(self, ledger: Ledger, device: str, deadline: float, only: str = "", repetitions: int = 0) -> None:
        self.ledger, self.device, self.deadline, self.repetitions = ledger, device, deadline, repetitions
        self.only = re.compile(only)

    def run(self, cell: Cell) -> None:
        {
            "losses": lambda: self.timed(cell, lineup.losses(cell), cell.pairs < TAKE_TURNS_BELOW),
            "compiled": lambda: self.timed(cell, lineup.compiled(cell), False),
            "targets": lambda: self.timed(cell, lineup.targets(cell), True),
            "tuned": lambda: self.timed(cell, lineup.tuned(cell), False),
            "graph": lambda: self.each(cell, [found for found in lineup.losses(cell) if found.graph], self._graph),
            "accuracy": lambda: self.each(cell, lineup.losses(cell), self._accuracy),
            "profile": lambda: self.each(cell, lineup.profiled(cell), self._profile),
        }[cell.stage]()

    # ---- one attempt ----

    def wanted(self, cell: Cell, contenders: list[Contender]) -> list[tuple[Key, Contender]]:
        keys = [(Key(cell.stage, cell.pairs, cell.width, cell.dtype, found.name), found) for found in contenders]
        return [(key, found) for key, found in keys if self.only.search(found.name) and key not in self.ledger.rows]

    def attempt(self, key: Key, work: Callable[[], Found], late: bool = False) -> Found | None:
        """What the work gives, or None and a row that says why not."""
        if not late and time.time() > self.deadline:
            self.ledger.add(key, "not reached")
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

    # ---- times and memory ----

    def timed(self, cell: Cell, contenders: list[Contender], take_turns: bool) -> None:
        """A row of times for each contender; in turns, so that a disturbance meets them alike, or one after the other."""
        pending = self.wanted(cell, contenders)
        if not pending:
            return
        batch = cell.batch(self.device)
        waiting: dict[Key, Warm] = {}
        for key, contender in pending:
            self.tidy()
            found = self.attempt(key, lambda contender=contender: {"warm": self._warm(contender, batch)})  # type: ignore[misc]
            if found is None:
                continue
            waiting[key] = found["warm"]
            del found
            if not take_turns:
                self.finish(waiting, take_turns)
        self.finish(waiting, take_turns)

    def _warm(self, contender: Contender, batch: Batch) -> Warm:
        self.fits(contender, len(batch.x))
        value = contender.make(batch)
        runs: dict[str, Callable[[], object]] = {"forward": value}
        if contender.family:
            runs = {"step": lambda: gradients(batch, value), "forward": value}
        whole = next(iter(runs.values()))
        found: Found = {}
        begun = time.perf_counter()
        seconds = self._first(whole, found)
        found["first_run_s"] = time.perf_counter() - begun
        if found["first_run_s"] < 4 or seconds < 2:  # compiled by now: a second look at time and memory
            seconds = self._first(whole, found)
        most = {name: 1 if seconds > 2 else max(3, min(MOST_REPETITIONS, int(aim / seconds))) for name, aim in AIM_S.items()}
        if seconds > 0.3:
            most["forward"] = 1
        return Warm(runs, {name: self.repetitions or most[name] for name in runs}, found)

    def _first(self, run: Callable[[], object], found: Found) -> float:
        """Seconds of a run, its peak noted."""
        spent = [0.0]

        def timed() -> None:
            spent[0] = once(run, self.device) / 1e3

        if self.device == "cpu":
            timed()
        else:
            once(lambda: None, self.device)  # so that the timer's own buffer is held before
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
        waiting.clear()

    # ---- one number each ----

    def each(self, cell: Cell, contenders: list[Contender], look: Callable[[Cell, Contender, Batch], Found]) -> None:
        """A row of what `look` finds for each contender."""
        pending = self.wanted(cell, contenders)
        if not pending:
            return
        batch = cell.batch(self.device)
        for key, contender in pending:
            self.tidy()
            found = self.attempt(key, lambda contender=contender: look(cell, contender, batch))  # type: ignore[misc]
            if found is not None:
                self.ledger.add(key, **found)

    def _graph(self, cell: Cell, contender: Contender, batch: Batch) -> Found:
        value = contender.make(batch)
        return {"replay": time_graph(lambda: gradients(batch, value), self.repetitions or 10, self.device).row()}

    def _accuracy(self, cell: Cell, contender: Contender, batch: Batch) -> Found:
        return accuracy.error(batch, contender.make(batch), contender.family)

    def _profile(self, cell: Cell, contender: Contender, batch: Batch) -> Found:
        value = contender.make(batch)
        teacher = contender.family not in ("InfoNCE", "SigLIP")
        return profiles.profiled(lambda: gradients(batch, value), self.device, cell.pairs, batch.x.element_size(), teacher)

    def ceilings(self, **sizes: int) -> None:
        """Into the ledger, once."""
        key = Key("ceilings", 0, 0, "", "this device")
        if key not in self.ledger.rows:
            found = self.attempt(key, lambda: ceilings.measure(self.device, **sizes))
            if found is not None:
                self.ledger.add(key, **found)


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


def work(ledger: Ledger, options: argparse.Namespace) -> None:
    """All that is not done yet."""
    ledger.about.setdefault("machine", machine(options.device))
    ledger.about.setdefault("budget_s", options.budget_seconds)
    deadline = ledger.about["started"] + ledger.about["budget_s"]
    bench = Bench(ledger, options.device, deadline, options.only, options.repetitions)
    bench.ceilings(**({"copied": 1 << 20, "size": 128, "repetitions": 1} if options.device == "cpu" else {}))
    for cell in lineup.plan(options.pairs, options.widths, options.dtypes):
        begun = time.time()
        bench.run(cell)
        print(f"{cell.stage} N = {cell.pairs:,} D = {cell.width} {cell.dtype}: {time.time() - begun:.1f} s", flush=True)
    ledger.about["seconds"] = round(time.time() - ledger.about["started"], 1)
    ledger.save()


def supervise(command: list[str], attempts: int = 6) -> int:
    """Run a command again as long as it ends badly: it goes on where it was. Its last status."""
    status = 1
    for _ in range(attempts):
        status = subprocess.run(command).returncode
        if status == 0:
            break
        print(f"The benchmark's process ended with status {status}.", flush=True)
    return status


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, nargs="+", default=list(lineup.ORDER), help="batch sizes N")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768], help="feature widths D, the main one first")
    parser.add_argument(
        "--dtypes", nargs="+", default=list(lineup.DTYPES), choices=list(lineup.DTYPES), help="the main one first"
    )
    parser.add_argument("--only", default="", help="a regular expression for the contenders' names")
    parser.add_argument("--repetitions", type=int, default=0, help="timed repetitions; by default fewer for slower ones")
    parser.add_argument("--budget-seconds", type=float, default=330, help="what is not begun by then is not reached")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = arguments().parse_args()
    path = options.output / "gpu"
    if options.worker:
        work(Ledger.resume(path), options)
        return
    ledger = Ledger(path)
    ledger.end()
    ledger.save()
    status = supervise([sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--worker"])
    text = tables.report(Ledger.resume(path))
    path.with_suffix(".md").write_text(text)
    with contextlib.suppress(BrokenPipeError):
        print(text)
    sys.exit(status)
