"""A plain training loop for any number of processes, which share every batch.

pip install -e '.[pictures]'
python -m docs.examples.ddp
torchrun --standalone --nproc_per_node 2 -m docs.examples.ddp
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from docs.examples.towers import Towers, load_tensors
from otter_losses import EMATeacher, OTTERLoss

BATCH = 64
"""Pairs a step, of all processes together."""


def main() -> list[float]:
    """The loss of every step."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    model: nn.Module = Towers().to(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = OTTERLoss()
    teacher = EMATeacher(model)
    teacher.follow(model, optimizer)

    data = load_tensors(256)
    sampler: DistributedSampler[Any] = DistributedSampler(data, world_size, rank)
    loader = DataLoader(data, BATCH // world_size, sampler=sampler)
    losses: list[float] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for batch in loader:
            images, texts, alpha = (each.to(device) for each in batch)
            x, y, scale = model(images, texts)
            v, t, s = teacher(images, texts)
            value = loss(x, y, scale, dist_image_features=v, dist_text_features=t, dist_logit_scale=s, alpha=alpha)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())  # of the whole batch, on every rank
            print(f"step {len(losses)}: {losses[-1]:.4f}")
    if world_size > 1:
        dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
