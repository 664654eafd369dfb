"""From scores, and scores of mismatched pairs, to the share of wrong pairs and each pair's local false discovery rate."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 2048
"""Of scores, equally filled."""

TAILS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
"""Shares of the mismatched pairs, from the worst on, below which Storey's estimate counts pairs."""

SAMPLES = 500
"""Of the bootstrap."""


@dataclass(frozen=True)
class Calibration:
    """What scores mean.

    Attributes:
        wrong_share, wrong_share_interval: see `PairTrust`.
        edges: (b - 1,), where bins of scores meet.
        trust: (b,) of the bins.
    """

    wrong_share: float
    wrong_share_interval: tuple[float, float]
    edges: Tensor
    trust: Tensor

    @classmethod
    def of(cls, score: Tensor, null: Tensor, seed: int) -> "Calibration":
        """Of scores (N,) and of mismatched pairs' (P,), on the CPU."""
        pooled = torch.cat((score, null)).sort().values
        edges = pooled[torch.linspace(0, len(pooled) - 1, BINS + 1).long()]
        edges = torch.unique_consecutive(edges[edges > pooled[0]])
        found, mismatched = (
            torch.bincount(torch.bucketize(each, edges, right=True), minlength=len(edges) + 1).double() for each in (score, null)
        )
        share = float(wrong_share(found[None], mismatched[None]))
        generator = torch.Generator().manual_seed(seed)
        drawn = (torch.poisson(each.expand(SAMPLES, -1), generator=generator) for each in (found, mismatched))
        low, high = wrong_share(*drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        trust = 1 - false_discovery_rate(found, mismatched, share)
        return cls(share, (min(low, share), max(high, share)), edges, trust.float())

    def trust_of(self, score: Tensor) -> Tensor:
        return self.trust[torch.bucketize(score, self.edges, right=True)]


def wrong_share(found: Tensor, mismatched: Tensor) -> Tensor:
    """Storey's estimate (r,) from counts (r, b) of pairs and of mismatched pairs in bins of rising scores.

    Below a score that a share t of the mismatched pairs stays below there are N t of wrong pairs, were all wrong, and few right
    ones: found / (N t) estimates the wrong pairs' share from above. A small t leaves out more right pairs and counts fewer; the
    one of the least estimated mean squared error is taken (Storey 2002), with a Poisson variance that is never 0.
    """
    pairs = found.sum(1, keepdim=True)
    below, tail = found.cumsum(1)[:, :-1], (mismatched.cumsum(1) / mismatched.sum(1, keepdim=True))[:, :-1]
    if not tail.shape[1]:
        return torch.ones(len(found), dtype=found.dtype)
    at = torch.searchsorted(tail.contiguous(), TAILS.expand(len(tail), -1).contiguous()).clamp_max(tail.shape[1] - 1)
    below, tail = below.gather(1, at), tail.gather(1, at).clamp_min(1 / pairs)
    estimates = below / pairs / tail
    least = estimates.quantile(0.1, dim=1, keepdim=True)
    error = (below + 1) / (pairs * tail).square() + (estimates - least).square()
    return estimates.gather(1, error.argmin(1, keepdim=True)).clamp(0, 1).squeeze(1)


def false_discovery_rate(found: Tensor, mismatched: Tensor, share: float) -> Tensor:
    """``share * f0 / f`` (b,), of densities of mismatched and of all pairs whose ratio falls where the score rises.

    Of all such ratios it is the likeliest: the isotonic regression of whether a score is a pair's or a mismatch's.
    """
    pairs = isotonic(found / (found + mismatched).clamp_min(1), found + mismatched)
    ratio = (1 - pairs) / pairs.clamp_min(1e-12) * (found.sum() / mismatched.sum())
    return (share * ratio).clamp(0, 1)


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The rising sequence nearest in weighted squares: neighbours that fall are pooled."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while pools and pools[-1][0] >= value:
            other, mass, size = pools.pop()
            value = (value * weight + other * mass) / max(weight + mass, 1e-12)
            weight, length = weight + mass, length + size
        pools.append((value, weight, length))
    return torch.cat([values.new_full((length,), value) for value, _, length in pools])
