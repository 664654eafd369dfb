"""Gloo's collectives and the loss's step in processes of this machine, held against the model's way of adding up."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.batch import Batch
from benchmarks.measure import Timing
from benchmarks.roofline.scaling.derived import WIDTH, collectives
from benchmarks.roofline.scaling.network import Collective
from otter_losses import OTTERLoss
from otter_losses.distributed.shard import BatchShard

KINDS = ("sum", "gather", "scatter")


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
    shard = BatchShard.of(group, (rows,) * ranks)
    if kind == "gather":
        return partial(shard.all_gather, torch.ones(rows))
    return partial(shard.all_reduce_sum_ if kind == "sum" else shard.reduce_scatter, torch.ones(ranks * rows))


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
