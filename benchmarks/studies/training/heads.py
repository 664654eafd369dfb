"""Heads over frozen features, with a learnable temperature."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

WIDTH = 384
INITIAL_SCALE = 1 / 0.07
MAX_SCALE = 100.0


class TwoHeads(nn.Module):
    """A head for pictures, a linear one for captions that starts as the identity, and a learnable temperature."""

    def __init__(self, image: nn.Module, text_width: int) -> None:
        super().__init__()
        self.image = image
        self.text = nn.Linear(text_width, WIDTH)
        nn.init.eye_(self.text.weight)
        nn.init.zeros_(self.text.bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        return normalize(self.image(images), dim=-1), normalize(self.text(texts), dim=-1), self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        self.log_scale.clamp_(max=math.log(MAX_SCALE))
