"""open_clip's own training loop on real pairs.

pip install -e '.[open-clip]'
python -m docs.examples.open_clip
"""

from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip_train.distributed import init_distributed_device
from open_clip_train.params import parse_args
from open_clip_train.train import train_one_epoch
from torch.utils.data import DataLoader, TensorDataset

from docs.examples.pairs import load_pairs
from otter_losses.integrations.open_clip import create_loss
from otter_losses.integrations.pair_values import PairValues, add_pair_values

ARGUMENTS = (
    "--model tiny --device cpu --precision fp32 --batch-size 32 --lr 1e-3 --epochs 12 --skip-scheduler --log-every-n-steps 1"
)
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 1}
TEXT = {"context_length": 16, "width": 64, "heads": 4, "layers": 1}


class Writer:
    """Stands where open_clip expects TensorBoard's: prints and keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "train/loss":
            self.losses.append(value)
            print(f"step {step + 1}: {value:.4f}")


def main() -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    args = parse_args(ARGUMENTS.split())
    init_distributed_device(args)
    args.distill = args.wandb = False
    images, captions = load_pairs(64)
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    pairs = TensorDataset(images, open_clip.tokenize(captions, context_length=16))
    batches: Any = DataLoader(pairs, args.batch_size, shuffle=True, drop_last=True)
    batches.num_samples, batches.num_batches = len(pairs), len(batches)
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    model = open_clip.CLIP(64, VISION, TEXT, output_dict=True)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, (args.beta1, args.beta2), args.eps, args.wd)
    loss = create_loss(args)
    file = f"{mkdtemp()}/alpha.npy"
    np.save(file, np.full(len(pairs), 0.5))  # how far each pair is believed; an audit's report.alpha() goes here
    add_pair_values(model, data["train"], [PairValues("alpha", file)])
    writer = Writer()
    for epoch in range(args.epochs):
        train_one_epoch(model, data, loss, epoch, optimizer, None, None, None, args, writer)
    return writer.losses


if __name__ == "__main__":
    main()
