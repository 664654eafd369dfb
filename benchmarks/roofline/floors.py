"""The least time a step could take on a chip, by counting: operations over their rate, bytes over the bandwidth. No GPU is used.

    python -m benchmarks.floors

For one forward + backward of InfoNCE, OTTER (with a teacher as wide as the student) and SigLIP by this library, and of eager
ClipLoss, step by step: a step takes the longer of its two times, and the steps add up. All of it is derived, nothing measured,
but for the H200's two rates. What is counted:

- Products cost 2 m n k operations. Half-precision features: at the tensor rate, summed in float32. Float32 features: at the
  float32 rate (no TF32).
- A product's N x N float32 block is written and read again; it may stay in the cache, so the floor stands with and without it.
- Half precision: the teacher's kernel K is kept as 16-bit codes; the student's cosines are computed again for the backward; the
  gradient of the logits, G, is float16. Float32: K, cosines and G are float32, kept where both fit
  `max_memory` (the library keeps K alone where only that fits).
- Beyond `max_memory` K is computed again in each of eight sweeps: to open, five rounds, the statistics and the gradient.
- N x N traffic and features only; vectors, launches and the host are left out.

Writes ``benchmarks/results/floors.{json,md}``.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

DEFAULT_MAX_MEMORY = 17 << 30
"""An eighth of an H200's memory, as the library has it there."""
ROUNDS = 5


@dataclass(frozen=True)
class Chip:
    """Bytes a second, and operations a second of products in half precision and in float32."""

    name: str
    bandwidth: float
    half: float
    single: float
    source: str = "datasheet, dense"


CHIPS = (
    Chip("V100", 0.9e12, 125e12, 15.7e12, "datasheet, SXM2; float16"),
    Chip("A100", 2.039e12, 312e12, 19.5e12, "datasheet, SXM 80 GB, dense"),
    Chip("H100", 3.35e12, 989e12, 67e12, "datasheet, SXM, dense"),
    Chip("H200", 4.3e12, 790e12, 67e12, "copy and bf16 product measured, float32 from the datasheet"),
    Chip("B200", 8e12, 2250e12, 75e12, "datasheet, HGX, dense"),
)


@dataclass(frozen=True)
class Step:
    """Work that one kernel after another must do: `block` bytes may stay in the cache, `bytes` may not."""

    name: str
    operations: float = 0.0
    bytes: float = 0.0
    block: float = 0.0

    def seconds(self, chip: Chip, half: bool, cached: bool) -> float:
        moved = self.bytes + (0.0 if cached else self.block)
        return max(self.operations / (chip.half if half else chip.single), moved / chip.bandwidth)


class Work:
    """The steps of one loss at (N, D), in half precision or float32; of a rank that has some of the N rows alone."""

    def __init__(self, pairs: int, width: int, half: bool, max_memory: int = DEFAULT_MAX_MEMORY, rows: int | None = None) -> None:
        rows = pairs if rows is None else rows
        self.pairs, self.width, self.half, self.max_memory = pairs, width, half, max_memory
        self.square = float(rows) * pairs
        self.itemsize = 2 if half else 4
        self.features = 1.0 * self.itemsize * (rows + pairs) * width

    def product(self, name: str, wide: int = 1, block: bool = True) -> Step:
        """Features times features; its block is written once, into the cache or, as a matrix that is kept, to memory."""
        written = 4 * self.square
        operations = 2 * self.square * self.width * wide
        return Step(name, operations, wide * self.features + (0 if block else written), written if block else 0.0)

    def gradients(self) -> list[Step]:
        """``dx = G y`` and ``dy = G^T x``."""
        moved = self.itemsize * self.square + self.features
        return [Step(name, 2 * self.square * self.width, moved) for name in ("dx = G y", "dy = G^T x")]

    def passes(self, name: str, kept: float = 0.0, block: float = 0.0) -> Step:
        """A walk over kept matrices and over blocks, in bytes an entry."""
        return Step(name, 0.0, kept * self.square, block * self.square)

    def plain(self) -> list[Step]:
        """InfoNCE, and SigLIP, which reads and writes the same: cosines, a reduction of them, their gradient."""
        if self.half or 4 * self.square > self.max_memory:
            return [
                self.product("cosines"),
                self.passes("statistics", block=4),
                self.product("cosines again"),
                self.passes("gradient of the logits", kept=self.itemsize, block=4),
                *self.gradients(),
            ]
        return [
            self.product("cosines", block=False),
            self.passes("statistics", kept=4),
            self.passes("gradient of the logits", kept=8),
            *self.gradients(),
        ]

    def stores_kernel(self) -> bool:
        return (2 if self.half else 8) * self.square <= self.max_memory

    def otter(self) -> list[Step]:
        if not self.stores_kernel():
            return self._otter_recomputed()
        if self.half:
            return [
                self.product("teacher", wide=2),
                self.passes("codes and opening sweep", kept=2, block=4),
                *(self.passes(f"round {count + 1}: codes twice", kept=4) for count in range(ROUNDS)),
                self.product("cosines"),
                self.passes("statistics", kept=2, block=4),
                self.product("cosines again"),
                self.passes("gradient of the logits", kept=4, block=4),
                *self.gradients(),
            ]
        return [
            self.product("teacher", wide=2, block=False),
            self.passes("exponentials and opening sweep", kept=8),
            *(self.passes(f"round {count + 1}: K twice", kept=8) for count in range(ROUNDS)),
            self.product("cosines", block=False),
            self.passes("statistics", kept=8),
            self.passes("gradient of the logits", kept=12),
            *self.gradients(),
        ]

    def _otter_recomputed(self) -> list[Step]:
        def sweep(name: str, reads: int) -> Iterator[Step]:
            yield self.product(f"teacher, {name}", wide=2)
            yield self.passes(name, block=4.0 * reads)

        return [
            *sweep("opening sweep", 1),
            *(step for count in range(ROUNDS) for step in sweep(f"round {count + 1}", 2)),
            *sweep("statistics", 1),
            self.product("cosines"),
            self.passes("statistics of the cosines", block=4),
            *sweep("gradient", 1),
            self.product("cosines again"),
            self.passes("gradient of the logits", kept=self.itemsize, block=4),
            *self.gradients(),
        ]

    def eager_clip(self) -> list[Step]:
        """open_clip's ClipLoss in torch, under autocast for half precision: each direction has its own logits."""
        size = self.itemsize
        cast = size != 4
        direction = [
            Step("logits", 2 * self.square * self.width, self.features + size * self.square),
            *([self.passes("to float32", kept=size + 4)] if cast else []),
            self.passes("log_softmax", kept=8),
            self.passes("gradient of nll_loss", kept=4),
            self.passes("gradient of log_softmax", kept=12),
            *([self.passes("from float32", kept=4 + size)] if cast else []),
            *self.gradients(),
        ]
        return 2 * direction

    def steps(self, loss: str) -> list[Step]:
        return {"InfoNCE": self.plain, "SigLIP": self.plain, "OTTER": self.otter, "eager ClipLoss": self.eager_clip}[loss]()

    def milliseconds(self, loss: str, chip: Chip, cached: bool) -> float:
        return 1e3 * sum(step.seconds(chip, self.half, cached) for step in self.steps(loss))


LOSSES = ("InfoNCE", "OTTER", "SigLIP", "eager ClipLoss")


def rows(pairs: list[int], width: int) -> list[dict[str, Any]]:
    """One row for each N, dtype and loss; SigLIP is counted as InfoNCE is."""
    found = []
    for half in (True, False):
        for n in pairs:
            work = Work(n, width, half)
            for loss in LOSSES:
                steps = work.steps(loss)
                found.append(
                    {
                        "pairs": n,
                        "width": width,
                        "dtype": "half" if half else "float32",
                        "loss": loss,
                        "kernel": "" if loss != "OTTER" else "kept" if work.stores_kernel() else "recomputed",
                        "operations": sum(step.operations for step in steps),
                        "bytes": sum(step.bytes for step in steps),
                        "block_bytes": sum(step.block for step in steps),
                        "milliseconds": {
                            chip.name: [work.milliseconds(loss, chip, cached) for cached in (True, False)] for chip in CHIPS
                        },
                    }
                )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The floors as Markdown: blocks in the cache - blocks in memory, and against eager ClipLoss."""
    heads = " | ".join(f"{chip.name}, ms" for chip in CHIPS)
    lines = [f"| dtype | N | loss | TFLOP | GB | {heads} | eager ClipLoss / this, H200 |", "|---" * (6 + len(CHIPS)) + "|"]
    for row in found:
        eager = next(
            other
            for other in found
            if other["loss"] == "eager ClipLoss" and (other["pairs"], other["dtype"]) == (row["pairs"], row["dtype"])
        )
        times = " | ".join(span(*row["milliseconds"][chip.name]) for chip in CHIPS)
        gain = eager["milliseconds"]["H200"][1] / row["milliseconds"]["H200"][1]
        name = f"{row['loss']}, K {row['kernel']}" if row["kernel"] else row["loss"]
        low, high = row["bytes"] / 1e9, (row["bytes"] + row["block_bytes"]) / 1e9
        lines.append(
            f"| {row['dtype']} | {row['pairs']:,} | {name} | {short(row['operations'] / 1e12)} | {span(low, high)} "
            f"| {times} | {gain:.2f} |"
        )
    return "\n".join(lines)


def steps_table(pairs: int, width: int, loss: str = "OTTER", half: bool = True) -> str:
    """Every step of one loss, as Markdown: operations, bytes, and the floor on each chip, blocks in the cache - in memory."""
    heads = " | ".join(f"{chip.name}, ms" for chip in CHIPS)
    lines = [f"| step | TFLOP | GB | {heads} |", "|---" * (3 + len(CHIPS)) + "|"]
    for step in Work(pairs, width, half).steps(loss):
        times = " | ".join(span(*(1e3 * step.seconds(chip, half, cached) for cached in (True, False))) for chip in CHIPS)
        moved = span(step.bytes / 1e9, (step.bytes + step.block) / 1e9)
        lines.append(f"| {step.name} | {short(step.operations / 1e12)} | {moved} | {times} |")
    return "\n".join(lines)


def span(low: float, high: float) -> str:
    """Two numbers, or one where they round to the same."""
    first, last = short(low), short(high)
    return first if first == last else f"{first} - {last}"


def short(number: float) -> str:
    """Three digits, without an exponent for large numbers."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 1024, 4096, 16384, 32768, 65536, 262144])
    parser.add_argument("--steps", type=int, default=32768, help="N of which OTTER's steps are listed one by one")
    parser.add_argument("--width", type=int, default=512, help="D, also the teacher's")
    parser.add_argument("--output", type=Path, default=RESULTS / "floors", help="where to write, without ending")
    options = parser.parse_args()
    found = rows(options.pairs, options.width)
    sources = "; ".join(
        f"{chip.name} {chip.bandwidth / 1e12:g} TB/s, {chip.half / 1e12:g} and {chip.single / 1e12:g} TFLOP/s ({chip.source})"
        for chip in CHIPS
    )
    text = (
        f"Derived, not measured: `python -m benchmarks.floors`. One forward + backward, D = {options.width}, `max_memory` "
        "17 GiB, an H200's default; "
        "milliseconds where the products' blocks stay in the cache - where they do not. The last column is for blocks that do "
        "not. Time only: eager ClipLoss at 262,144 fits no memory, and V100 has no bfloat16.\n\n"
        f"Rates: {sources}.\n\n{table(found)}\n\n"
        f"OTTER in half precision at N = {options.steps:,}, step by step:\n\n{steps_table(options.steps, options.width)}\n"
    )
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chips = [vars(chip) for chip in CHIPS]
    options.output.with_suffix(".json").write_text(json.dumps({"chips": chips, "rows": found}, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(text)
