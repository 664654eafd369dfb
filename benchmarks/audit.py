"""`pair_trust` on synthetic pairs of two spaces, 640 wide each: time, memory, what shards and an index cost, and calibration.

    python -m benchmarks.audit

30 % of the captions are handed round; uneven topics, seen through two unrelated random encoders with noise. Arrays are mapped
from files, each audit runs once in a process of its own. Seconds are those of the cores that it had, summed, so that others on
the machine count little; peaks are the growth of the resident set (Linux), without the pages of the mapped files. From the sizes
measured a law is fitted: a share by the pair, and one by the pair of pairs; larger N are derived from it and say so.
Writes ``benchmarks/results/audit.{json,md}``.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from benchmarks import markdown
from benchmarks.measure import RESULTS, machine
from benchmarks.studies.found import auc
from otter_losses.audit import pair_trust

WIDTH, LATENT, TOPICS, WRONG = 640, 24, 2000, 0.3
NOISE = 2.5
"""Deviation of the features' noise: the signal's is about 0.6."""

DERIVED = (300_000, 1_000_000, 3_000_000)
COMPONENTS = 256
GPU_FLOPS = 2e14
"""Of a GPU's half-precision products with a selection after each tile: a fifth of an H100's peak, assumed and not measured."""

ON_PAPER = ((3_000_000, 1, 1), (100_000_000, 64, 1), (100_000_000, 1, 100))
"""Pairs, GPUs that share them, and shards."""

BANDS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0))


def write_pairs(folder: Path, pairs: int) -> None:
    """``images.npy``, ``texts.npy`` and which of them are ``wrong.npy``, in blocks."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    topic = torch.multinomial(torch.rand(TOPICS, generator=generator), pairs, True, generator=generator)
    shown = normal(TOPICS, LATENT)[topic] + 0.7 * normal(pairs, LATENT)
    source = torch.arange(pairs)
    moved = torch.randperm(pairs, generator=generator)[: round(WRONG * pairs)]
    source[moved] = source[moved.roll(1)]
    for name, rows in (("images", torch.arange(pairs)), ("texts", source)):
        encoder = 1.5 * normal(LATENT, WIDTH) / LATENT**0.5
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (pairs, WIDTH))
        for begin in range(0, pairs, 8192):
            part = rows[begin : begin + 8192]
            file[begin : begin + 8192] = (torch.tanh(shown[part] @ encoder) + NOISE * normal(len(part), WIDTH)).numpy()
    np.save(folder / "wrong.npy", (source != torch.arange(pairs)).numpy())


@dataclass(frozen=True)
class Found:
    """Of one audit.

    Attributes:
        wall: seconds by the clock.
        seconds: of the cores, for all, for both searches, and for the scores.
        peak_bytes: growth of the resident set, private pages only.
        area: under the curve for wrong pairs.
        wrong_share, low, high: the estimate and its interval.
        bands: pairs, mean trust and share of right pairs, by trust.
    """

    pairs: int
    shards: int
    search: str
    wall: float
    seconds: float
    search_seconds: float
    score_seconds: float
    peak_bytes: int
    area: float
    wrong_share: float
    low: float
    high: float
    bands: list[tuple[int, float, float]]


def private_bytes() -> int:
    """Resident bytes that are not a file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def audit(folder: str, pairs: int, shards: int, search: Any, threads: int) -> Found:
    """The first pairs of a folder."""
    torch.set_num_threads(threads)
    images, texts = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r")[:pairs] for name in ("images", "texts"))
    wrong = torch.from_numpy(np.load(Path(folder) / "wrong.npy")[:pairs])
    before = most = private_bytes()
    begun: dict[str, float] = {}
    done = Event()

    def told(stage: str, rows: int, total: int) -> None:
        begun[stage] = time.process_time()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, private_bytes())

    watching = Thread(target=watch)
    watching.start()
    wall, start = time.perf_counter(), time.process_time()
    report = pair_trust(images, texts, shards=shards, search=search, progress=told)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    done.set()
    watching.join()
    area = auc(report.score, ~wrong)
    assert area is not None
    inside = [(report.trust >= low) & ((report.trust < high) | (high == 1)) for low, high in BANDS]
    return Found(
        pairs,
        shards,
        search,
        wall,
        seconds,
        begun["search texts"] - begun["project texts"],
        start + seconds - begun["search texts"],
        most - before,
        area,
        report.wrong_share,
        *report.wrong_share_interval,
        [
            (int(band.sum()), float(report.trust[band].mean()), float((~wrong[band]).float().mean())) if band.any() else (0, 0, 0)
            for band in inside
        ],
    )


def alone(*arguments: Any) -> Found:
    """`audit` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(audit, *arguments).result()


def law(rows: list[Found]) -> tuple[float, float]:
    """Seconds by the pair, and by the pair of pairs: least squares of relative errors."""
    pairs = torch.tensor([row.pairs for row in rows], dtype=torch.float64)
    seconds = torch.tensor([row.seconds for row in rows], dtype=torch.float64)
    terms = torch.stack((pairs, pairs.square()), 1) / seconds[:, None]
    linear, square = torch.linalg.lstsq(terms, torch.ones(len(rows), 1, dtype=torch.float64)).solution.flatten().tolist()
    return linear, square


def search_work(pairs: int) -> float:
    """FLOP of the products of both searches."""
    return 2 * 2 * COMPONENTS * float(pairs) ** 2


def duration(pairs: int, gpus: int, shards: int) -> str:
    minutes = search_work(pairs) / shards / gpus / GPU_FLOPS / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def report(sizes: list[Found], cheaper: list[Found]) -> str:
    linear, square = law(sizes)
    measured = [
        [
            f"{row.pairs:,}",
            f"{row.seconds:.3g}",
            f"{row.wall:.3g}",
            f"{row.search_seconds / row.seconds:.0%}",
            f"{row.score_seconds / row.seconds:.0%}",
            f"{row.peak_bytes / 1e6:,.0f}",
            f"{row.area:.3f}",
            f"{row.wrong_share:.3f} [{row.low:.3f}, {row.high:.3f}]",
            "measured",
        ]
        for row in sizes
    ]
    derived = [
        [f"{pairs:,}", f"{linear * pairs + square * pairs**2:,.0f}", "", "", "", "", "", "", "derived"] for pairs in DERIVED
    ]
    heads = ["pairs", "core seconds", "by the clock", "search", "scores", "peak, MB", "AUC", f"wrong share (true {WRONG})", ""]
    parts = [
        markdown.table(heads, measured + derived),
        f"Law: {linear:.2g} N + {square:.2g} N^2 core seconds; the square is {search_work(1) / square / 1e9:,.0f} GFLOP/s of "
        "products.",
        f"On paper, none of it run: the products of an exact search at an assumed {GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU.",
        markdown.table(
            ["pairs", "GPUs", "shards", "products, FLOP", "time"],
            [
                [f"{pairs:,}", str(gpus), str(shards), f"{search_work(pairs) / shards:.1e}", duration(pairs, gpus, shards)]
                for pairs, gpus, shards in ON_PAPER
            ],
        ),
        "Less search, for less:",
        markdown.table(
            ["pairs", "search", "core seconds", "AUC", "wrong share"],
            [
                [
                    f"{row.pairs:,}",
                    row.search if row.shards == 1 else f"{row.shards} shards",
                    f"{row.seconds:.3g}",
                    f"{row.area:.3f}",
                    f"{row.wrong_share:.3f} [{row.low:.3f}, {row.high:.3f}]",
                ]
                for row in cheaper
            ],
        ),
        f"Calibration at {sizes[-1].pairs:,} pairs:",
        markdown.table(
            ["trust", "pairs", "mean trust", "share of right pairs"],
            [
                [f"{low:.1f} - {high:.1f}", f"{count:,}", f"{trust:.2f}", f"{right:.2f}"]
                for (low, high), (count, trust, right) in zip(BANDS, sizes[-1].bands, strict=True)
            ],
        ),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[12_500, 25_000, 50_000, 100_000])
    parser.add_argument("--cheaper", type=int, default=25_000, help="pairs of the comparison with shards and an index")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "audit", help="where to write, without ending")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), max(*options.pairs, options.cheaper))
        sizes = [alone(folder, pairs, 1, "exact", options.threads) for pairs in sorted(options.pairs)]
        cheaper = [alone(folder, options.cheaper, shards, "exact", options.threads) for shards in options.shards]
        if find_spec("faiss") is not None:
            cheaper.append(alone(folder, options.cheaper, 1, "faiss", options.threads))
    where = machine("cpu") | {"threads": options.threads}
    text = f"`python -m benchmarks.audit` on {markdown.heading(where)}. One run each.\n\n{report(sizes, cheaper)}\n"
    found = {"machine": where, "sizes": [asdict(row) for row in sizes], "cheaper": [asdict(row) for row in cheaper]}
    markdown.write(options.output, text, found)


if __name__ == "__main__":
    main()
