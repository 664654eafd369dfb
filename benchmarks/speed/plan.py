"""What is measured on a GPU, at which sizes, and in which order: what matters most comes first.

The headlines of what people train with, then the targets and the transport alone, the largest batches, and all the rest.
"""

from dataclasses import dataclass

import torch

from benchmarks.batch import Batch, Problems

ORDER = (4096, 16384, 512, 32768, 1024, 65536, 262144)
"""The sizes, the most telling first."""
MOST_HELD = 32768
"""The largest size at which losses that hold N x N matrices are compiled, replayed as graphs and run in every mode."""
TARGETS = (512, 1024, 4096, 16384)
ACCURACY = (4096,)
TUNED = (4096,)
PROFILED = (4096, 32768)
LARGEST = 262144
SHOWCASE = 65536
"""The size of the second width that comes first: the one that rivals print numbers for."""
SINKHORN = ((256, 64), (4096, 1))
"""Sizes of transport problems, and how many."""
ROUNDS, EPSILON = 20, 0.15
"""Of those."""


@dataclass(frozen=True)
class Mode:
    """What a loss is handed over: features of a dtype, in an autocast region or in none."""

    dtype: torch.dtype
    words: str
    amp: torch.dtype | None = None


MODES = {
    "bfloat16": Mode(torch.bfloat16, "bfloat16 features"),
    "autocast": Mode(torch.float32, "float32 features inside torch.autocast(bfloat16)", torch.bfloat16),
    "float32": Mode(torch.float32, "float32 features"),
}


@dataclass(frozen=True)
class Cell:
    """One stage of the run, at one size; of transport problems, `width` is how many."""

    stage: str
    pairs: int
    width: int
    mode: str

    @property
    def group(self) -> str:
        """What its rows are about: the stages of losses share their rows."""
        return "losses" if self.stage in ("headline", "torch", "others") else "targets" if self.stage == "tuned" else self.stage

    def batch(self, device: str) -> Batch | Problems:
        if self.stage == "sinkhorn":
            return Problems(self.pairs, self.width, device)
        mode = MODES[self.mode]
        return Batch(self.pairs, self.width, device, dtype=mode.dtype, amp=mode.amp)


def plan(pairs: list[int], widths: list[int], modes: list[str]) -> list[Cell]:
    """All cells, the most important first."""
    sizes = sorted(pairs, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    small, large = [n for n in sizes if n <= MOST_HELD], [n for n in sizes if n > MOST_HELD]
    (first, *wider), (main, *less) = widths, modes

    def cells(stage: str, chosen: list[int], mode: str = main, width: int = first) -> list[Cell]:
        return [Cell(stage, n, width, mode) for n in chosen]

    def among(wanted: tuple[int, ...]) -> list[int]:
        return [n for n in sizes if n in wanted]

    found = [
        *(Cell("headline", n, first, mode) for n in small for mode in modes if mode != "float32"),
        *cells("targets", among(TARGETS), "float32"),
        *(Cell("sinkhorn", size, count, "float32") for size, count in SINKHORN),
        *cells("headline", large),
        *(cells("headline", small, "float32") if "float32" in modes else []),
        *cells("torch", small),
        *cells("accuracy", among(ACCURACY)),
        *cells("profile", among(PROFILED)),
        *cells("others", small + large),
    ]
    for width in wider:
        found += cells("headline", among((SHOWCASE,)), width=width)
    for mode in less:
        found += cells("accuracy", among(ACCURACY), mode) + cells("torch", small, mode) + cells("others", small, mode)
    for width in wider:
        found += cells("headline", [n for n in small + large if n not in (SHOWCASE, LARGEST)], width=width)
    return found + cells("tuned", among(TUNED), "float32")
