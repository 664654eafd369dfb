"""Everything on a GPU: time, memory and accuracy of the losses and of the targets alone, against the arithmetic people run today,
the released one and other projects' kernels; and where the time goes, against the device's own ceilings.

    python -m benchmarks.gpu                              # about 5 minutes on an H100
    python -m benchmarks.gpu --device cpu --pairs 32 --widths 8 --budget-seconds 30 --output somewhere    # to try the machinery

Writes ``gpu.json``, after each row, and ``gpu.md`` to the folder given: what was asked for, derived beforehand and measured comes
first (`benchmarks/speed/aims.py`). Times are medians by the clock, the host's work included, and beside them the device's alone;
below N = 32,768 all contenders of a size take turns, above each has its own. Memory is the allocator's peak beyond the inputs.
What fails, is missing, does not fit or is not reached within the budget is a row that says so. A process that a kernel breaks or
hangs is ended and the rest is run in another.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import RESULTS, machine, present
from benchmarks.speed import plan
from benchmarks.speed.bench import Bench
from benchmarks.speed.ledger import Ledger
from benchmarks.speed.report import report


def work(ledger: Ledger, options: argparse.Namespace) -> None:
    """All that is not done yet."""
    ledger.about.setdefault("machine", machine(options.device))
    ledger.about.setdefault("budget_s", options.budget_seconds)
    deadline = ledger.about["started"] + ledger.about["budget_s"]
    bench = Bench(ledger, options.device, deadline, options.only, options.repetitions)
    bench.ceilings(**({"copied": 1 << 20, "size": 128, "repetitions": 1} if options.device == "cpu" else {}))
    for cell in plan.plan(options.pairs, options.widths, options.modes):
        begun = time.time()
        bench.run(cell)
        write(ledger)
        print(f"{cell.stage} N = {cell.pairs:,} D = {cell.width} {cell.mode}: {time.time() - begun:.1f} s", flush=True)


def write(ledger: Ledger) -> str:
    """The report of what there is so far, in ``gpu.md`` too."""
    ledger.about["seconds"] = round(time.time() - ledger.about["started"], 1)
    ledger.save()
    text = report(ledger)
    ledger.file.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def supervise(command: list[str], attempts: int = 12) -> int:
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
    parser.add_argument("--device", type=present, default="cuda")
    parser.add_argument("--pairs", type=int, nargs="+", default=list(plan.ORDER), help="batch sizes N")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 768], help="feature widths D, the main one first")
    parser.add_argument("--modes", nargs="+", default=list(plan.MODES), choices=list(plan.MODES), help="the main one first")
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
    text = write(Ledger.resume(path))
    with contextlib.suppress(BrokenPipeError):
        print(text)
    sys.exit(status)
