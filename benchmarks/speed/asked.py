"""The benchmark's first table: what was asked for, what was derived beforehand, and what came."""

from benchmarks import markdown
from benchmarks.markdown import short
from benchmarks.speed import predictions
from benchmarks.speed.aims import AIMS, Aim
from benchmarks.speed.ledger import Key, Ledger, median


def table(ledger: Ledger) -> str:
    """What was asked for, what was derived beforehand, and what came."""
    derived = predictions.committed()
    lines = []
    for aim in AIMS:
        for pairs in aim.pairs:
            wall, device = (_reached(ledger, aim, pairs, graph) for graph in (False, True))
            met = "" if wall is None else "aim" if wall <= (aim.aim or 0) else "needed" if wall <= aim.needed else "missed"
            numbers = (aim.needed, aim.aim, derived.get((aim.words, pairs)), wall, device)
            lines.append([aim.words, f"{pairs:,}", *("" if each is None else short(each) for each in numbers), met])
    return (
        "## What is asked for\n\nAt most so much of another's time, by the clock, or so many milliseconds. *Derived* was counted "
        "for an H100 before this run (`python -m benchmarks.predictions`). *Device*: the same ratio without the host's work.\n\n"
        + markdown.table(["what", "N", "needed", "aim", "derived", "measured", "device", "met"], lines)
    )


def _reached(ledger: Ledger, aim: Aim, pairs: int, graph: bool) -> float | None:
    """The ratio, or the milliseconds, that an aim asks about; of graphs, or by the clock."""
    group = f"{aim.group}, graph" if graph else aim.group
    own = median(ledger.rows.get(Key(group, pairs, aim.width, aim.mode, aim.name)))
    if own is None or not aim.against:
        return own
    other = median(ledger.rows.get(Key(group, pairs, aim.width, aim.against_mode or aim.mode, aim.against)))
    return None if other is None else own / other
