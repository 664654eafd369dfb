"""What a teacher, `q`, one alpha a pair and `groups` cost: each loss with them and without, in turn.

    python -m benchmarks.options

Forward and backward, float32, backend "torch" on the CPU. Ratios are of medians within one run. Writes
``benchmarks/results/options-DEVICE.{json,md}``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import markdown
from benchmarks.batch import Batch
from benchmarks.measure import RESULTS, machine, time_all
from otter_losses import DistillationLoss, InfoNCELoss, OTTERLoss, RobustLoss, SigLIPLoss
from otter_losses.losses.base import PairLoss

LOSSES: dict[str, tuple[type[PairLoss], bool]] = {
    "InfoNCELoss": (InfoNCELoss, False),
    "DistillationLoss": (DistillationLoss, True),
    "RobustLoss": (RobustLoss, True),
    "OTTERLoss": (OTTERLoss, True),
    "SigLIPLoss": (SigLIPLoss, False),
}
"""And whether each has a teacher, and so an alpha."""

PAIRS_A_GROUP = 2


BASELINE = "InfoNCELoss"


def options_of(name: str, pairs: int, device: str) -> dict[str, dict[str, Any]]:
    """By what they are called; the first is none."""
    alpha = torch.linspace(0.05, 0.5, pairs, device=device)
    found: dict[str, dict[str, Any]] = {"": {}}
    if name == "RobustLoss":  # which has its q
        found["alpha per pair"] = {"alpha": alpha}
    elif name != "SigLIPLoss":
        found["q=0.3"] = {"q": 0.3}
        if LOSSES[name][1]:
            found["q=0.3, alpha per pair"] = {"q": 0.3, "alpha": alpha}
    found["groups"] = {"groups": torch.arange(pairs, device=device) // PAIRS_A_GROUP}
    return found


def steps(name: str, batch: Batch, device: str) -> dict[str, Callable[[], object]]:
    """A loss with each of its options, forward and backward."""
    make, is_taught = LOSSES[name]
    loss, teacher = make(), {"dist_image_features": batch.v, "dist_text_features": batch.t} if is_taught else {}

    def step(options: dict[str, Any]) -> Callable[[], object]:
        def run() -> object:
            value = loss(batch.x, batch.y, batch.scale, **teacher, **options)
            assert isinstance(value, Tensor)
            return torch.autograd.grad(value, (batch.x, batch.y, batch.scale))

        return run

    return {words: step(options) for words, options in options_of(name, len(batch.x), device).items()}


def rows_for(pairs: int, width: int, device: str, repetitions: int) -> list[dict[str, Any]]:
    batch = Batch(pairs, width, device)
    every = {f"{name}|{words}": step for name in LOSSES for words, step in steps(name, batch, device).items()}
    timings = time_all(every, repetitions, device)
    rows = []
    for key, timing in timings.items():
        name, words = key.split("|")
        ratio, to_baseline = (timing.median / timings[f"{other}|"].median for other in (name, BASELINE))
        rows.append({"pairs": pairs, "loss": name, "options": words, "ratio": ratio, "to_baseline": to_baseline, **timing.row()})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        time = f"{row['median_ms']:,.1f} ({row['spread']:.0%})"
        ratio = f"{row['ratio']:.2f}" if row["options"] else ""
        lines.append([f"{row['pairs']:,}", row["loss"], row["options"], time, ratio, f"{row['to_baseline']:.2f}"])
    return markdown.table(["N", "loss", "with", "median, ms (IQR)", "with / without", f"/ {BASELINE}"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 2048, 4096], help="batch sizes N")
    parser.add_argument("--width", type=int, default=512, help="feature width D")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="where to write, without ending")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for pairs in options.pairs for row in rows_for(pairs, options.width, options.device, options.repetitions)]
    where = machine(options.device)
    text = (
        f"`python -m benchmarks.options` on {markdown.heading(where)}; D = {options.width}, float32, forward + backward, groups "
        f"of {PAIRS_A_GROUP}.\n\n{table(rows)}\n"
    )
    markdown.write(options.output or RESULTS / f"options-{options.device}", text, {"machine": where, "rows": rows})


if __name__ == "__main__":
    main()
