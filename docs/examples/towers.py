"""A tiny model with two towers for the examples, and real pairs as tensors for it."""

import math
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from docs.examples.pairs import load_pairs

WORDS = 4096


class Towers(nn.Module):
    """Pictures (B, 3, 32, 32) and words (B, L) -> unit features (B, 64) of both, and the exponentiated logit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 8 * 8, 64))
        self.text = nn.EmbeddingBag(WORDS, 64, padding_idx=0)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10)))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1), self.log_scale.exp()


def load_tensors(count: int) -> TensorDataset:
    """Pictures (count, 3, 32, 32), the numbers of their captions' words (count, L), filled up with 0, and an alpha (count,)."""
    images, captions = load_pairs(count)
    words = [torch.tensor([zlib.crc32(word.encode()) % (WORDS - 1) + 1 for word in caption.split()]) for caption in captions]
    alpha = torch.full((count,), 0.5)  # how far each pair is believed; an audit's report.alpha() goes here
    return TensorDataset((images - images.mean(0)) / images.std(), nn.utils.rnn.pad_sequence(words, batch_first=True), alpha)
