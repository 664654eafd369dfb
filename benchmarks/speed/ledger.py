"""The rows found so far, on disk after each, so that a process that dies or hangs loses one row and not the run."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What a row is about."""

    group: str
    pairs: int
    width: int
    mode: str
    name: str


class Ledger:
    """Rows by key, in ``PATH.json``; what is being tried right now stands in ``PATH.running``."""

    def __init__(self, path: Path) -> None:
        self.file, self.running = path.with_suffix(".json"), path.with_suffix(".running")
        self.about: dict[str, Any] = {"started": time.time()}
        self.rows: dict[Key, dict[str, Any]] = {}

    @classmethod
    def resume(cls, path: Path) -> "Ledger":
        """What another process left, and a row for what it died of."""
        ledger = cls(path)
        if ledger.file.exists():
            found = json.loads(ledger.file.read_text())
            ledger.about = found["about"]
            ledger.rows = {Key(*(row[field] for field in Key._fields)): row for row in found["rows"]}
        if ledger.running.exists():
            ledger.add(Key(*json.loads(ledger.running.read_text())), "failed: the process died, or hung and was ended, in it")
            ledger.end()
        return ledger

    def begin(self, key: Key) -> None:
        self.running.write_text(json.dumps(key))

    def end(self) -> None:
        self.running.unlink(missing_ok=True)

    def add(self, key: Key, status: str = "ok", **found: Any) -> None:
        self.rows[key] = {**key._asdict(), "status": status, **found}
        self.save()

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"about": self.about, "rows": list(self.rows.values())}, indent=0) + "\n")
        os.replace(new, self.file)

    def of(self, group: str) -> list[dict[str, Any]]:
        return [row for key, row in self.rows.items() if key.group == group]


def median(row: dict[str, Any] | None) -> float | None:
    """Milliseconds of a row: of a step, or of a forward where there is no more, or of a graph's replay."""
    if row is None or row["status"] != "ok":
        return None
    timing = next(row[each] for each in ("step", "replay", "forward") if each in row)
    return float(timing["median_ms"])
