"""Several gloo processes on this machine."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

IMPORTED = ["pytest", "torch._dynamo", "torch.distributed.fsdp", "otter_losses.losses.registry", "tests"]
"""What takes long, imported once by the process that the others fork from."""


def start(process: Callable[..., None], world: int, *arguments: Any) -> None:
    """``process(rank, *arguments)`` in `world` processes, until all have ended."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    start_processes(process, arguments, world, start_method="forkserver")  # type: ignore[no-untyped-call]


def join(rank: int, world: int, folder: str) -> None:
    """Make this process one of a group. It gets one thread."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)


def run(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(rank, world, *arguments)`` returns in every process of a group."""
    start(_process, world, work, world, str(folder), arguments)
    return saved(folder, world)


def saved(folder: Path, world: int) -> list[Any]:
    """What the first `world` processes saved as ``<rank>.pt``."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _process(rank: int, work: Callable[..., Any], world: int, folder: str, arguments: tuple[Any, ...]) -> None:
    join(rank, world, folder)
    torch.save(work(rank, world, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
