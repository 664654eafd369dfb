"""The least time a step could take on a chip, by counting: operations over their rate, bytes over the bandwidth. No GPU is used.

    python -m benchmarks.floors

For one forward + backward of InfoNCE, OTTER (with a teacher as wide as the student) and SigLIP by this library, and of eager
ClipLoss, step by step: a step takes the longer of its two times, and the steps add up. All of it is derived, nothing measured,
but for the H100's rates and two of the H200's. What is counted:

- Products cost 2 m n k operations. Half-precision features: at the tensor rate, summed in float32. Float32 features: three
  products of float16 parts at that rate; eager ClipLoss, and all before Ampere (V100), at the float32 rate (no TF32).
- Products that a kernel reads are computed by it, tile by tile, and not written: one step, the longer of its product and of what
  else it moves. Not so before Ampere, and of the teacher's product in the rounds that compute it again: there its float32 block
  is written and read again; it may stay in the cache, so the floor stands with and without it.
- What such a kernel does to an entry of its product costs time beside multiplying: for the H100 it is measured, and counted once
  for logits and once for K; for the other chips it is left out.
- The teacher's kernel K is kept, as 16-bit codes (half precision) or in float32; the cosines are computed again for the
  backward; the gradient of the logits, G, is one float16 matrix (half precision) or two. SigLIP computes losses and G in one
  pass.
- Beyond `max_memory` K is computed again in each of eight sweeps: to open, five rounds, the statistics and the gradient.
- N x N traffic and features only; vectors, launches and the host are left out.

Writes ``benchmarks/results/floors.{json,md}``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.markdown import short, span
from benchmarks.measure import RESULTS
from benchmarks.roofline.chips import CHIPS
from benchmarks.roofline.work import LOSSES, Work

TIMES = [f"{chip.name}, ms" for chip in CHIPS]


def rows(pairs: list[int], width: int) -> list[dict[str, Any]]:
    """One row for each N, dtype and loss."""
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
                        "operations": sum(step.operations + step.single for step in steps),
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
    lines = []
    for row in found:
        eager = next(
            other
            for other in found
            if other["loss"] == "eager ClipLoss" and (other["pairs"], other["dtype"]) == (row["pairs"], row["dtype"])
        )
        name = f"{row['loss']}, K {row['kernel']}" if row["kernel"] else row["loss"]
        work = short(row["operations"] / 1e12), span(row["bytes"] / 1e9, (row["bytes"] + row["block_bytes"]) / 1e9)
        times = [span(*row["milliseconds"][chip.name]) for chip in CHIPS]
        gain = eager["milliseconds"]["H100"][1] / row["milliseconds"]["H100"][1]
        lines.append([row["dtype"], f"{row['pairs']:,}", name, *work, *times, f"{gain:.2f}"])
    return markdown.table(["dtype", "N", "loss", "TFLOP", "GB", *TIMES, "eager ClipLoss / this, H100"], lines)


def steps_table(pairs: int, width: int, loss: str = "OTTER", half: bool = True) -> str:
    """Every step of one loss, as Markdown: operations, bytes, and the floor on chips that compute their tiles.

    Where those differ: blocks in the cache - in memory.
    """
    chips = [chip for chip in CHIPS if chip.computes_tiles]
    lines = []
    for step in Work(pairs, width, half).steps(loss):
        times = [span(*(1e3 * step.seconds(chip, cached) for cached in (True, False))) for chip in chips]
        moved = span(step.bytes / 1e9, (step.bytes + step.block) / 1e9)
        lines.append([step.name, short((step.operations + step.single) / 1e12), moved, *times])
    return markdown.table(["step", "TFLOP", "GB", *(f"{chip.name}, ms" for chip in chips)], lines)


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
        "milliseconds where the products' blocks stay in the cache - where they do not. Bytes are those of chips from Ampere on; "
        "the last column is for blocks that do not stay. Time only: eager ClipLoss at 262,144 fits no memory, and V100 has no "
        "bfloat16.\n\n"
        f"Rates: {sources}.\n\n{table(found)}\n\n"
        f"OTTER in half precision at N = {options.steps:,}, step by step:\n\n{steps_table(options.steps, options.width)}\n"
    )
    markdown.write(options.output, text, {"chips": [vars(chip) for chip in CHIPS], "rows": found})
