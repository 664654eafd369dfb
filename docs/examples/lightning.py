"""A LightningModule for any number of devices, which share every batch.

pip install -e '.[lightning]'
python -m docs.examples.lightning
python -m docs.examples.lightning 2
"""

import sys
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from docs.examples.towers import Towers, load_tensors
from otter_losses import EMATeacher, OTTERLoss

BATCH = 64
"""Pairs a step, of all devices together."""


class CLIP(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers()
        self.teacher = EMATeacher(self.towers)
        self.loss = OTTERLoss()
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        *pairs, alpha = batch
        v, t, s = self.teacher(*pairs)
        taught = {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": s}
        value: Tensor = self.loss(*self.towers(*pairs), **taught, alpha=alpha)
        self.losses.append(value.item())  # of the whole batch, on every rank
        print(f"step {len(self.losses)}: {value:.4f}")
        return value

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        self.teacher.follow(self.towers, optimizer)
        return optimizer


def main(devices: int = 1) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    model = CLIP()
    loader = DataLoader(load_tensors(256), BATCH // devices, shuffle=True)
    trainer = lightning.Trainer(
        devices=devices, max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, loader)
    return model.losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
