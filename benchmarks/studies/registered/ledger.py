"""Finished runs, one line each, so that a killed study goes on; hits on the test are packed, and not read before the end."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.hit_at_k import KS
from benchmarks.studies.table.run import Outcome, Run

Line = dict[str, Any]
MISSED = KS[-1] + 1
"""The rank of all that is not hit at any k."""


def append(path: Path, outcome: Outcome, seconds: float, commit: str) -> None:
    """In one write, which processes that share the file do not mix."""
    run = outcome.run
    line = {
        "setting": run.setting,
        "method": run.method,
        "seed": run.seed,
        "epochs": run.epochs,
        "seconds": round(seconds, 2),
        "logit_scale": round(outcome.logit_scale, 3),
        "commit": commit,
        "validation": {name: pack(ranks) for name, ranks in outcome.validation.items()},
        "test": {name: pack(ranks) for name, ranks in outcome.test.items()},
    }
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Line]:
    """One whole line of each run, the first; a last one that was cut off is taken out of the file, so that its run is done again.

    A run has two lines where a worker outlived the process that was killed.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    found: dict[Run, Line] = {}
    for line in map(json.loads, whole.splitlines()):
        found.setdefault(run_of(line), line)
    return list(found.values())


def run_of(line: Line) -> Run:
    return Run(line["setting"], line["method"], line["seed"], line["epochs"])


def pack(ranks: NDArray[np.int32]) -> str:
    """The smallest of `KS` that hits each picture, in two bits, and how many pictures there are."""
    hit_by = np.searchsorted(KS, ranks).astype(np.uint8)
    bits = np.unpackbits(hit_by[:, None], axis=1)[:, -2:]
    return f"{len(ranks)}:{base64.b64encode(np.packbits(bits).tobytes()).decode()}"


def unpack(text: str) -> NDArray[np.int32]:
    """Ranks that give the same hits: the k that hit, or `MISSED`."""
    count, packed = text.split(":")
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), count=2 * int(count)).reshape(-1, 2)
    ranks: NDArray[np.int32] = np.array([*KS, MISSED], np.int32)[2 * bits[:, 0] + bits[:, 1]]
    return ranks


def outcome_of(line: Line) -> Outcome:
    """The test's hits among it: for the report alone."""
    validation, test = ({name: unpack(text) for name, text in line[role].items()} for role in ("validation", "test"))
    return Outcome(run_of(line), validation, test, line["logit_scale"])


def validation_mean(line: Line) -> float:
    """Of hit@1, 5 and 10 over both validation sets, in per cent."""
    return float(np.mean([100 * (unpack(text) <= k).mean() for text in line["validation"].values() for k in KS]))
