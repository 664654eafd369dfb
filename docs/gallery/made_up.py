"""Embeddings of made-up pairs: uneven topics, seen through two unrelated encoders."""

import torch
from torch import Tensor

TOPICS = 60


def make_pairs(
    count: int, wrong: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image (count, 96) and text embeddings (count, 80), and of each pair (count,)
    whether its caption was handed to another image, and its topic.
    """
    world, draw = (
        torch.Generator().manual_seed(0),
        torch.Generator().manual_seed(1 + seed),
    )
    share = torch.rand(TOPICS, generator=world) ** 2 + 0.02
    topic = torch.multinomial(share, count, replacement=True, generator=draw)
    shown = torch.randn(TOPICS, 12, generator=world)[topic] + 0.7 * torch.randn(
        count, 12, generator=draw
    )
    images, texts = (
        torch.tanh(shown @ torch.randn(12, width, generator=world) / 2)
        + torch.randn(count, width, generator=draw)
        for width in (96, 80)
    )
    moved = torch.randperm(count, generator=draw)[: round(count * wrong)]
    texts[moved] = texts[moved.roll(1)]
    return (
        images,
        texts,
        torch.zeros(count, dtype=torch.bool).index_fill_(0, moved, True),
        topic,
    )
