"""Where a process computes: its device, and its place among the others."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """This process's rank among `size` that share every batch, and its device."""

    rank: int
    size: int
    device: torch.device

    def half(self, precision: str) -> torch.dtype | None:
        """What to compute the encoders in; None for float32. "auto" is what the device has tensor cores for."""
        if precision == "auto":
            if self.device.type != "cuda":
                return None
            return torch.bfloat16 if torch.cuda.get_device_capability(self.device) >= (8, 0) else torch.float16
        return HALVES.get(precision)

    def sums(self, values: list[float]) -> list[float]:
        """Each value's sum over the processes; waits for all of them."""
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(totals)
        return totals.tolist()

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (b, ...) of every process, in the order of their ranks."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """For all the others."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[Place]:
    """This process's place as torchrun's environment tells it, or alone without it; a process group that is there is kept."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if ours:
        cuda = device.type == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        if dist.is_initialized():
            yield Place(dist.get_rank(), dist.get_world_size(), device)
        else:
            yield Place(0, 1, device)
    finally:
        if ours:
            dist.destroy_process_group()


def autocast(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[None]:
    """Half precision where it is safe; without one, nothing."""
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)
