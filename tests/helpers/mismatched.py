"""Pairs of two modalities that share nothing but what they show, some of them with a wrong caption."""

from typing import NamedTuple

import torch
from torch import Tensor


class Mismatched(NamedTuple):
    """Features (N, D) and (N, E), and which pairs (N,) are wrong."""

    images: Tensor
    texts: Tensor
    wrong: Tensor


def mismatched(
    pairs: int, wrong: float, *, noise: float = 1.0, topics: int = 60, widths: tuple[int, int] = (96, 80), seed: int = 0
) -> Mismatched:
    """Uneven topics seen through two unrelated encoders; captions of a share of the pairs are handed round."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    topic = torch.multinomial(torch.rand(topics, generator=generator) ** 2 + 0.02, pairs, True, generator=generator)
    shown = normal(topics, 12)[topic] + 0.7 * normal(pairs, 12)
    images, texts = (torch.tanh(shown @ normal(12, width) / 2) + noise * normal(pairs, width) for width in widths)
    moved = torch.randperm(pairs, generator=generator)[: round(pairs * wrong)]
    texts[moved] = texts[moved.roll(1)]
    return Mismatched(images, texts, torch.zeros(pairs, dtype=torch.bool).index_fill_(0, moved, True))


def area_under_curve(score: Tensor, wrong: Tensor) -> float:
    """The share of right and wrong pairs in which the right one has the higher score; half of those that tie."""
    right = score[~wrong].sort().values
    below, up_to = (torch.searchsorted(right, score[wrong], right=side) for side in (False, True))
    return float(1 - (below + up_to).double().mean() / 2 / len(right))
