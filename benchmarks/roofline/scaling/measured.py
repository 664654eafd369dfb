"""Time, bytes and memory of a sharded step against the number of GPUs: where does the loss stop being cheap? No GPU is used.

    python -m benchmarks.scaling            # about a minute on 2 cores

Two parts. *Measured*, on this machine's CPU: gloo's collectives and the loss's step with 1, 2 and 4 processes, held against the
model's way of adding up: the rows' share of one process's time, slowed down as the slowest of processes is that do not talk,
and latency + size / bandwidth of every collective. *Derived*, for GPUs: kernel times are those of `benchmarks.floors` for b
of N rows; collectives are those of docs/distributed.md, at published link speeds and with NCCL's own latencies. Assumed:

- Hosts of 8 GPUs. A ring through several hosts goes as fast as NVLink or all of a host's network cards together, whichever is
  slower, times `EFFICIENCY`. Latency and protocols as in NCCL's `src/graph/tuning.cc`: the fastest of ring or tree (sums), in its
  protocols LL and Simple. Nothing overlaps: a step is its kernels, then its collectives.
- Floors leave out launches, and products' blocks do not stay in the cache. Features in half precision, D = E = 512, five rounds.
- Towers compute forward and backward at `MFU` of the rate of products. A teacher's forward and the gradients' all-reduce are not
  counted; either makes the loss's share smaller.
- "local" transports within each rank's own pairs, and is InfoNCE over all pairs beside OTTER over b.
- "released" gathers both N x N float32 problems and solves them on every rank: 116 accesses an entry, counted in
  `reference.released_targets`, and eager ClipLoss on its rows.

Writes ``benchmarks/results/scaling-cpu.{json,md}``.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.measure import RESULTS, Timing, machine
from benchmarks.roofline.floors import CHIPS, DEFAULT_MAX_MEMORY, ROUNDS, Chip, Work, short
from benchmarks.speed.contenders import Batch
from otter_losses import OTTERLoss
from otter_losses.ops.world import World

WIDTH = 512
HOST = 8
EFFICIENCY = 0.8
MFU = 0.4
LARGEST = 1 << 20
RELEASED_ACCESSES = 116

TOWERS = {"ViT-B/32": 44.1e9, "ViT-B/16": 123.0e9}
"""Operations of a pair, forward and backward, counted by torch.utils.flop_counter in open_clip's models (77 tokens)."""

NVLINK = {"V100": 150e9, "A100": 300e9, "H100": 450e9, "H200": 450e9, "B200": 900e9}
"""Bytes a second and direction of a GPU: half of what NVIDIA's NVLink page and datasheets give for both."""


@dataclass(frozen=True)
class Network:
    """Bytes a second and direction of a host of 8 GPUs."""

    name: str
    bandwidth: float
    source: str


NETWORKS = (
    Network("InfiniBand NDR", 8 * 50e9, "8 ConnectX-7 of 400 Gb/s, one a GPU: DGX H100/H200 datasheet"),
    Network("Ethernet", 12.5e9, "one 100 Gb/s card a host: IEEE 802.3"),
)

NCCL = {
    # algorithm, protocol: base latency, of a step within a host, between hosts (microseconds), share of the bandwidth
    ("ring", "LL"): (3.6, 0.47, 2.7, 1 / 4),
    ("ring", "Simple"): (8.4, 3.4, 9.6, 1.0),
    ("tree", "LL"): (4.4, 0.52, 5.0, 0.9 / 3.8),
    ("tree", "Simple"): (0.0, 28.0, 50.0, 0.9),
}
"""NVIDIA/nccl, src/graph/tuning.cc at 01afd20: baseLat, hwLat of NVLink and NET, and what it multiplies bandwidths with."""


@dataclass(frozen=True)
class Collective:
    """A gather of so many bytes in all, or a sum of so many on every rank, of which a scatter leaves each its own."""

    name: str
    kind: str
    bytes: float

    def sent(self, ranks: int) -> float:
        """Bytes that a rank must send at least."""
        return (2 if self.kind == "sum" else 1) * self.bytes * (ranks - 1) / ranks

    def seconds(self, ranks: int, nvlink: float, network: Network) -> float:
        """By NCCL's fastest way."""
        if ranks == 1:
            return 0.0
        hosts, within = math.ceil(ranks / HOST), min(ranks, HOST)
        bus = EFFICIENCY * (nvlink if hosts == 1 else min(nvlink, network.bandwidth))
        rounds = 2 if self.kind == "sum" else 1
        found = []
        for (algorithm, protocol), (base, inside, between, share) in NCCL.items():
            inside *= 1.8 if protocol == "LL" and hosts > 1 else 1
            if algorithm == "ring":
                latency = base + rounds * ((ranks - hosts) * inside + (hosts - 1) * between)
                found.append(1e-6 * latency + self.sent(ranks) / (bus * share))
            elif self.kind == "sum":
                latency = base + 2 * ((within - 1) * inside + math.ceil(math.log2(hosts)) * between)
                found.append(1e-6 * latency + 2 * self.bytes / (bus * share))
        return min(found)


def collectives(scheme: str, pairs: int, width: int = WIDTH, itemsize: int = 2, rounds: int = ROUNDS) -> list[Collective]:
    """Of one forward and backward, in order; a teacher as wide as the student."""
    features = Collective("features", "gather", float(itemsize) * pairs * width)
    vector = 4.0 * pairs
    backward = [
        Collective("gradients of the losses", "gather", 2 * vector),
        Collective("gradient of the texts", "scatter", vector * width),
    ]
    column_lse = [Collective("column statistics", "sum", vector)] * 2
    mean = Collective("mean", "sum", 4.0)
    if scheme == "InfoNCE":
        return [features, *column_lse, mean, *backward]
    if scheme == "local":
        return [features, *column_lse, mean, mean, *backward]
    if scheme == "released":
        problem = Collective("a problem", "gather", 4.0 * pairs * pairs)
        return [features, features, features, features, problem, problem]
    sweeps = [Collective("column sums", "sum", vector), *[Collective("column sums", "sum", 2 * vector)] * rounds]
    statistics_ = [*column_lse, Collective("column statistics", "sum", vector)]
    return [features, features, features, *sweeps, *statistics_, mean, mean, *backward]


KINDS = ("sum", "gather", "scatter")
SCHEMES = ("global", "local", "InfoNCE", "released")


def kernel_seconds(scheme: str, chip: Chip, own: int, pairs: int) -> float:
    """What a rank computes, at least."""

    def floor(loss: str, columns: int) -> float:
        return Work(columns, WIDTH, True, rows=own).milliseconds(loss, chip, cached=False) / 1e3

    if scheme == "released":
        return floor("eager ClipLoss", pairs) + RELEASED_ACCESSES * 4.0 * pairs**2 / chip.bandwidth
    if scheme == "local" and own < pairs:
        return floor("InfoNCE", pairs) + floor("OTTER", own)
    return floor("InfoNCE" if scheme == "InfoNCE" else "OTTER", pairs)


def memory(scheme: str, own: int, pairs: int) -> float:
    """Bytes of a rank's matrices, of the gathered features and of the texts' gradient; row blocks aside."""
    features = 2.0 * pairs * WIDTH
    if scheme == "released":
        return 2 * 4.0 * pairs**2 + 4 * features + 2 * 4.0 * own * pairs
    work = Work(pairs if scheme == "global" else own, WIDTH, True, rows=own)
    kernel = 0.0 if scheme == "InfoNCE" or not work.stores_kernel() else 2 * work.square
    return kernel + (3 if scheme == "global" else 1) * features + 4.0 * pairs * WIDTH


def derive(chip: Chip, network: Network, ranks: int, own: int) -> dict[str, Any]:
    """One step of every scheme, and its share of a step with either tower."""
    pairs = ranks * own
    towers = {name: own * operations / (MFU * chip.half) for name, operations in TOWERS.items()}
    row: dict[str, Any] = {"chip": chip.name, "network": network.name, "ranks": ranks, "own": own, "pairs": pairs}
    for scheme in SCHEMES:
        kernel = kernel_seconds(scheme, chip, own, pairs)
        crossing = collectives(scheme, pairs)
        wire = sum(each.seconds(ranks, NVLINK[chip.name], network) for each in crossing)
        row[scheme] = {
            "kernel_s": kernel,
            "collectives_s": wire,
            "sent_bytes": sum(each.sent(ranks) for each in crossing),
            "memory_bytes": memory(scheme, own, pairs),
            "share": {name: (kernel + wire) / (kernel + wire + tower) for name, tower in towers.items()},
        }
    row["recomputed"] = not Work(pairs, WIDTH, True, rows=own).stores_kernel()
    return row


def fewest_pairs(chip: Chip, network: Network, own: int, scheme: str, tower: str, share: float) -> int | None:
    """N from which on the loss takes more than that share of a step, among powers of two of GPUs."""
    found = None
    for exponent in reversed(range(10)):
        if own << exponent > LARGEST:
            continue
        if derive(chip, network, 1 << exponent, own)[scheme]["share"][tower] <= share:
            break
        found = own << exponent
    return found


# ---- measured on this machine ----


def _worker(
    rank: int, worlds: list[int], folder: str, sizes: list[int], cells: list[tuple[int, int]], repetitions: int, alone: int
) -> None:
    """All worlds in turn, so that a disturbance of the machine meets them alike; ranks that a world lacks wait."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=max(worlds))
    contenders: dict[str, Callable[[], object]] = {}
    for ranks in worlds:
        group = dist.new_group(list(range(ranks)))
        names = [f"{kind} {size}" for size in sizes for kind in KINDS if ranks > 1]
        here: dict[str, Callable[[], object]] = dict.fromkeys(("undisturbed", *names), _wait)
        here |= {f"step {pairs}": _wait for world, pairs in cells if world == ranks}
        if rank < ranks:
            here["undisturbed"] = _together(_step(0, 1, alone, None), group)
            here |= {name: _collective(name, group, ranks) for name in names}
            here |= {f"step {pairs}": _step(rank, ranks, pairs, group) for world, pairs in cells if world == ranks}
        contenders |= {f"{ranks} {name}": run for name, run in here.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            dist.barrier()
            begin = time.perf_counter()
            run()
            if repetition:
                times[name].append(1e3 * (time.perf_counter() - begin))
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()


def _wait() -> None:
    """At the next barrier."""


def _collective(name: str, group: Any, ranks: int) -> Callable[[], object]:
    kind, size = name.split()
    rows = int(size) // 4 // ranks
    world = World.of(group, (rows,) * ranks)
    if kind == "gather":
        return partial(world.gather, torch.ones(rows))
    return partial(world.add if kind == "sum" else world.scatter, torch.ones(ranks * rows))


def _together(run: Callable[[], object], group: Any) -> Callable[[], object]:
    """Until the slowest has done it."""

    def all_run() -> None:
        run()
        dist.barrier(group)

    return all_run


def _step(rank: int, ranks: int, pairs: int, group: Any) -> Callable[[], object]:
    loss = OTTERLoss(rank=rank, world_size=ranks, group=group)
    batch = Batch(pairs, WIDTH, "cpu")
    own = slice(rank * pairs // ranks, (rank + 1) * pairs // ranks)
    x, y, v, t = (each[own].detach().clone() for each in (batch.x, batch.y, batch.v, batch.t))
    leaves = x.requires_grad_(), y.requires_grad_()

    def step() -> object:
        value = loss(*leaves, 14.3, dist_image_features=v, dist_text_features=t)
        assert isinstance(value, torch.Tensor)
        return torch.autograd.grad(value, leaves)

    return step


def fit(sizes: list[int], milliseconds: list[float]) -> tuple[float, float]:
    """Latency in seconds and bytes a second, by least squares of relative errors."""
    seconds = np.array(milliseconds) / 1e3
    design = np.stack((np.ones(len(sizes)), np.array(sizes, dtype=float)), axis=1) / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0]
    return float(max(latency, 0.0)), float(1 / max(per_byte, 1e-15))


def measure(
    worlds: list[int], cells: list[tuple[int, int]], sizes: list[int], repetitions: int, alone: int = 1024
) -> dict[str, Any]:
    """Gloo's fits, and every step's time beside what the model makes of one process's.

    How processes slow each other down is measured on steps of so many pairs `alone`, in which they do not talk.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, args=(worlds, folder, sizes, cells, repetitions, alone), nprocs=max(worlds))  # type: ignore[no-untyped-call]
        timings = {name: Timing(tuple(times)) for name, times in json.loads(Path(folder, "times.json").read_text()).items()}
    fits: list[dict[str, Any]] = []
    for ranks in worlds[1:]:
        for kind in KINDS:
            timed = [timings[f"{ranks} {kind} {size}"] for size in sizes]
            latency, bandwidth = fit(sizes, [min(timing.milliseconds) for timing in timed])
            spread = statistics.median(timing.spread for timing in timed)
            fits.append({"ranks": ranks, "kind": kind, "latency_s": latency, "bytes_per_s": bandwidth, "spread": spread})
    steps = []
    for ranks, pairs in cells:
        timing = timings[f"{ranks} step {pairs}"]
        fastest = {name: min(timings[name].milliseconds) for name in (f"{ranks} undisturbed", "1 undisturbed", f"1 step {pairs}")}
        slowdown = fastest[f"{ranks} undisturbed"] / fastest["1 undisturbed"]
        kernel = fastest[f"1 step {pairs}"] / ranks * slowdown
        wire = 0.0
        if ranks > 1:
            by_kind = {each["kind"]: each for each in fits if each["ranks"] == ranks}
            crossing = [*collectives("global", pairs, itemsize=4), Collective("letter", "gather", 2048.0 * ranks)]
            wire = sum(by_kind[each.kind]["latency_s"] + each.bytes / by_kind[each.kind]["bytes_per_s"] for each in crossing)
        model = {"model_ms": kernel + 1e3 * wire, "wire_ms": 1e3 * wire, "slowdown": slowdown}
        steps.append({"ranks": ranks, "pairs": pairs, **model, **timing.row()})
    return {"fits": fits, "steps": steps}


# ---- tables ----


def measured_table(found: dict[str, Any]) -> str:
    lines = [
        "| processes | N | median ms | IQR | fastest ms | model ms | of it collectives | slowdown | model / fastest |",
        "|---" * 9 + "|",
    ]
    for row in found["steps"]:
        fastest = min(row["milliseconds"])
        cells = [f"{row['ranks']}", f"{row['pairs']:,}", f"{row['median_ms']:,.0f}", f"{row['spread']:.0%}", f"{fastest:,.0f}"]
        cells += [
            f"{row['model_ms']:,.0f}",
            f"{row['wire_ms']:,.0f}",
            f"{row['slowdown']:.2f}",
            f"{row['model_ms'] / fastest:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| processes | collective | latency, ms | GB/s | IQR |", "|---" * 5 + "|"]
    for row in found["fits"]:
        lines.append(
            f"| {row['ranks']} | {row['kind']} | {1e3 * row['latency_s']:.2f} | {row['bytes_per_s'] / 1e9:.2f} "
            f"| {row['spread']:.0%} |"
        )
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def step_table(rows: list[dict[str, Any]]) -> str:
    """OTTER's kernels, collectives, bytes and memory, and all schemes' shares of a step with ViT-B/32."""
    lines = [
        "| GPUs | pairs a GPU | N | kernels, ms | collectives, ms | sent, GB | memory, GB "
        "| OTTER | ViT-B/16 | local | InfoNCE | released | its memory, GB |",
        "|---" * 13 + "|",
    ]
    for row in rows:
        otter, released = row["global"], row["released"]
        shares = " | ".join(percent(row[scheme]["share"]["ViT-B/32"]) for scheme in ("local", "InfoNCE", "released"))
        kernel = short(1e3 * otter["kernel_s"]) + (", recomputing" if row["recomputed"] else "")
        lines.append(
            f"| {row['ranks']} | {row['own']:,} | {row['pairs']:,} | {kernel} | {short(1e3 * otter['collectives_s'])} "
            f"| {short(otter['sent_bytes'] / 1e9)} | {short(otter['memory_bytes'] / 1e9)} "
            f"| {percent(otter['share']['ViT-B/32'])} | {percent(otter['share']['ViT-B/16'])} | {shares} "
            f"| {short(released['memory_bytes'] / 1e9)} |"
        )
    return "\n".join(lines)


def threshold_table(rows: list[dict[str, Any]]) -> str:
    """N from which on a loss takes more than 5 % and more than 20 % of a step."""
    heads = " | ".join(f"{scheme if scheme != 'global' else 'OTTER'}" for scheme in SCHEMES)
    lines = [f"| chip | network | tower | {heads} |", "|---" * (3 + len(SCHEMES)) + "|"]
    for row in rows:
        cells = []
        for scheme in SCHEMES:
            low, high = (f"{found:,}" if found else "-" for found in row[scheme])
            cells.append(f"{low} / {high}")
        lines.append(f"| {row['chip']} | {row['network']} | {row['tower']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def derived() -> dict[str, list[dict[str, Any]]]:
    """Every derived row: b fixed, N fixed, and thresholds."""
    h200 = next(chip for chip in CHIPS if chip.name == "H200")
    scale = [1, 8, 16, 64, 256, 512]
    grown = [
        derive(h200, network, ranks, own)
        for network in NETWORKS
        for own in (512, 2048, 4096)
        for ranks in scale
        if ranks * own <= LARGEST
    ]
    divided = [
        derive(h200, network, ranks, pairs // ranks) for network in NETWORKS for pairs in (32768, LARGEST) for ranks in scale[1:]
    ]
    thresholds = [
        {
            "chip": chip.name,
            "network": network.name,
            "tower": tower,
            "own": 2048,
            **{scheme: [fewest_pairs(chip, network, 2048, scheme, tower, share) for share in (0.05, 0.2)] for scheme in SCHEMES},
        }
        for chip in CHIPS
        for network in NETWORKS
        for tower in TOWERS
    ]
    return {"pairs_a_gpu_fixed": grown, "pairs_fixed": divided, "thresholds": thresholds}


def report(about: dict[str, Any], found: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    heading = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    links = "; ".join(f"{name} {speed / 1e9:g} GB/s" for name, speed in NVLINK.items())
    networks = "; ".join(f"{each.name} {each.bandwidth / 1e9:g} GB/s a host ({each.source})" for each in NETWORKS)
    towers = ", ".join(f"{name} {operations / 1e9:g} GFLOP a pair" for name, operations in TOWERS.items())
    parts = [
        "# Time against the number of ranks",
        "`python -m benchmarks.scaling`; assumptions stand at its head.",
        f"## Measured: gloo on this machine\n\n{heading}, one thread a process; D = E = {WIDTH}, float32, forward + backward. "
        "The model is made of fastest repetitions, since the machine was shared: one process's time over the number of "
        "processes, slowed down as the slowest of processes is that do not talk, and the collectives by the fits below.",
        measured_table(found),
        f"## Derived: GPUs\n\nNothing below was measured. NVLink, a direction: {links} (NVIDIA's datasheets). "
        f"Networks: {networks}. {EFFICIENCY:.0%} of these is reached, with NCCL's latencies. "
        f"Towers: {towers}, at {MFU:.0%} of the product rate. `max_memory` {DEFAULT_MAX_MEMORY >> 30} GiB. "
        "Shares are of a step with ViT-B/32 where no other tower is named.",
    ]
    for network in NETWORKS:
        for name, title in (("pairs_a_gpu_fixed", "pairs a GPU fixed"), ("pairs_fixed", "N fixed")):
            chosen = [row for row in rows[name] if row["network"] == network.name]
            parts.append(f"### H200, {network.name}, {title}\n\n{step_table(chosen)}")
    parts.append(
        "### N from which on the loss takes more than 5 % / 20 % of a step\n\n2,048 pairs a GPU, up to 512 GPUs and N = "
        f"{LARGEST:,}; -: not up to there.\n\n{threshold_table(rows['thresholds'])}"
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--worlds", type=int, nargs="+", default=[1, 2, 4], help="numbers of local processes; 1 must be among them"
    )
    parser.add_argument("--own", type=int, default=512, help="pairs a process where they are fixed")
    parser.add_argument("--pairs", type=int, default=2048, help="N where it is fixed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 65536, 1 << 20, 1 << 22, 1 << 24], help="bytes")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling-cpu", help="where to write, without ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes_of_n = sorted({options.own * ranks for ranks in options.worlds} | {options.pairs})
    cells = sorted(
        {(1, pairs) for pairs in sizes_of_n}
        | {(ranks, pairs) for ranks in options.worlds for pairs in (options.own * ranks, options.pairs)}
    )
    about = {**machine("cpu"), "cores": os.cpu_count()}
    found = measure(sorted(options.worlds), cells, options.sizes, options.repetitions)
    rows = derived()
    text = report(about, found, rows)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    assumed = {"efficiency": EFFICIENCY, "mfu": MFU, "towers": TOWERS, "nvlink": NVLINK, "networks": [vars(n) for n in NETWORKS]}
    everything = {"machine": about, "measured": found, "assumed": assumed, "derived": rows}
    options.output.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(text)
