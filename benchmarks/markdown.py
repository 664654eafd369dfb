"""Results as text: Markdown tables, short numbers, and the two files that a command leaves."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table of cells that are text already."""
    lines = [" | ".join(cells) for cells in (heads, *rows)]
    first, *others = (f"| {line} |" for line in lines)
    return "\n".join((first, "|---" * len(heads) + "|", *others))


def heading(about: dict[str, Any]) -> str:
    """What is known of a machine, in words."""
    return ", ".join(f"{key} {value}" for key, value in about.items() if value)


def short(number: float) -> str:
    """Three digits, without an exponent for large numbers."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def span(low: float, high: float) -> str:
    """Two numbers, or one where they round to the same."""
    first, last = short(low), short(high)
    return first if first == last else f"{first} - {last}"


def write(output: Path, text: str, found: Any) -> None:
    """Print the text, and leave it in ``OUTPUT.md`` beside what was found in ``OUTPUT.json``."""
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(text, encoding="utf-8")
