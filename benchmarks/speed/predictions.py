"""What is expected of every aim before it is measured: this library's times counted, the others' from the run before.

    python -m benchmarks.predictions

The device's time is that of `benchmarks.floors` at the H100's measured rates; by the clock a step takes at least what the host
does: `STEP` for PyTorch's share of a loss, `CALL` of a function without gradient, and `LAUNCH` for each kernel. What was not
measured before is counted too. Writes ``benchmarks/results/predictions.{json,md}``, which the GPU benchmark prints beside what
it finds; nothing is measured here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.markdown import short
from benchmarks.measure import RESULTS
from benchmarks.roofline.chips import H100
from benchmarks.roofline.work import Work
from benchmarks.speed.aims import AIMS, Aim
from benchmarks.speed.plan import ROUNDS

BEFORE = RESULTS / "gpu-h100.json"
"""The run that gives the others' times; this library has changed since."""
STEP, CALL, LAUNCH = 0.5, 0.1, 0.015
"""Milliseconds: a fused InfoNCE in one autograd.Function of eight launches took 0.62; an empty Triton launch takes 0.015."""
TORCH_LAUNCH = 0.007
"""Of a small kernel of torch, which is most of what a loop in Python costs."""
LAUNCHES = {
    "InfoNCE": 14,
    "OTTER": 25,
    "SigLIP": 15,
    "InfoNCE, torch": 30,
    "OTTER, torch": 100,
    "targets": 11,
    "eager ClipLoss": 25,
}
COUNTED = {
    "eager ClipLoss": "eager ClipLoss",
    "InfoNCELoss": "InfoNCE",
    "OTTERLoss": "OTTER",
    "SigLIPLoss": "SigLIP",
    "InfoNCELoss [torch]": "InfoNCE, torch",
    "OTTERLoss [torch]": "OTTER, torch",
    "otter_targets": "targets",
}
"""What stands for a contender in `benchmarks.roofline.work`."""
H100_MAX_MEMORY = 10 << 30
"""An eighth of its memory."""


def transport(name: str, size: int, count: int) -> float:
    """Milliseconds of twenty rounds on a batch of problems: all in one launch, or two passes a round and what a pass launches."""
    sweep = 1e3 * 4 * count * size**2 / H100.bandwidth
    if name == "sinkhorn_knopp":
        return max(2 * sweep, CALL + 2 * LAUNCH)
    reads, launches = {"POT, batch solver": (7, 7), "a loop, torch.compile": (2, 1)}[name]
    return 2 * ROUNDS * max(reads * sweep, launches * TORCH_LAUNCH)


def counted(name: str, pairs: int, width: int, mode: str) -> float | None:
    """Milliseconds by the clock, where the contender's work is counted."""
    if name not in COUNTED:
        return None
    loss = COUNTED[name]
    device = Work(pairs, width, mode != "float32", H100_MAX_MEMORY).milliseconds(loss, H100, cached=True)
    host = (CALL if loss == "targets" else STEP) + LAUNCHES[loss] * (TORCH_LAUNCH if "torch" in loss else LAUNCH)
    if mode == "autocast":  # both features to half precision, both gradients back: six bytes an entry, a launch each
        device += 1e3 * 4 * 6 * pairs * width / H100.bandwidth
        host += 4 * TORCH_LAUNCH
    return max(device, host)


def measured_before() -> dict[tuple[Any, ...], float]:
    """Milliseconds of others by size, width, mode and name. Under autocast the eager losses multiply what half features are."""
    found = {}
    for row in json.loads(BEFORE.read_text(encoding="utf-8"))["rows"]:
        if row["status"] == "ok" and ("step" in row or "forward" in row):
            modes = ("bfloat16", "autocast") if row["dtype"] == "bfloat16" else (row["dtype"],)
            for mode in modes:
                found[row["pairs"], row["width"], mode, row["name"]] = row.get("step", row.get("forward"))["median_ms"]
    return found


def predicted(aim: Aim, pairs: int, before: dict[tuple[Any, ...], float]) -> float | None:
    """The ratio, or milliseconds, that an aim asks about."""
    if aim.group == "sinkhorn":
        return transport(aim.name, pairs, aim.width) / transport(aim.against, pairs, aim.width)
    own = counted(aim.name, pairs, aim.width, aim.mode)
    if own is None or not aim.against:
        return own
    other = None if aim.against_mode else before.get((pairs, aim.width, aim.mode, aim.against))
    other = other or counted(aim.against, pairs, aim.width, aim.against_mode or aim.mode)
    return None if other is None else own / other


def rows() -> list[dict[str, Any]]:
    """One for each aim and size."""
    before = measured_before()
    return [
        {"what": aim.words, "pairs": pairs, "needed": aim.needed, "aim": aim.aim, "derived": predicted(aim, pairs, before)}
        for aim in AIMS
        for pairs in aim.pairs
    ]


def committed(path: Path = RESULTS / "predictions.json") -> dict[tuple[str, int], float | None]:
    """What was predicted, by words and size; nothing where the file is not there."""
    if not path.exists():
        return {}
    return {(row["what"], row["pairs"]): row["derived"] for row in json.loads(path.read_text(encoding="utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "predictions", help="where to write, without ending")
    options = parser.parse_args()
    found = rows()
    lines = [
        [row["what"], f"{row['pairs']:,}", *(short(row[each]) if row[each] else "" for each in ("needed", "aim", "derived"))]
        for row in found
    ]
    text = (
        "Derived, not measured: `python -m benchmarks.predictions`, on an H100. At most so much of another's time, or so many "
        f"milliseconds.\n\n{markdown.table(['what', 'N', 'needed', 'aim', 'derived'], lines)}\n"
    )
    markdown.write(options.output, text, found)
