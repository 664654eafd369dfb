"""Tables as the studies write them."""

from collections.abc import Sequence
from statistics import stdev


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well as it stands."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def spread(values: Sequence[float], divisor: float = 1.0) -> str:
    """The standard deviation, or its part, as it follows a mean; nothing for one value."""
    return f" ± {stdev(values) / divisor:.1f}" if len(values) > 1 else ""
