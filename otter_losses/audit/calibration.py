"""From scores, and scores of mismatched pairs, to the share of wrong pairs and each pair's local false discovery rate."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 2048
"""Of scores, equally filled."""

TAILS = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
"""Shares of the mismatched pairs, from the worst on, below which Storey's estimate counts pairs."""

CROWD = 400
"""So many pairs that share an image or a caption count as one: a crowd of thousands then weighs little."""

ERRORS = 2.0
"""Standard errors by which an estimate may be above what another allows."""

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
    def of(cls, score: Tensor, null: Tensor, seed: int, crowded: Tensor | None = None) -> "Calibration":
        """Of scores (N,) and of mismatched pairs' (P,), on the CPU.

        Of `crowded` pairs (N,), which share one image or one caption with many, `CROWD` count as one: they share their luck too,
        and mismatched pairs' scores do not crowd as theirs do.
        """
        if not len(null):  # nothing is told
            return cls(1.0, (0.0, 1.0), score.new_empty(0), torch.zeros(1))
        pooled = torch.cat((score, null)).sort().values
        edges = pooled[torch.linspace(0, len(pooled) - 1, BINS + 1, dtype=torch.float64).long()]
        edges = torch.unique_consecutive(edges[edges > pooled[0]])
        counts, mismatched = (_counts(each, edges) for each in (score, null))
        found = counts
        if crowded is not None and not crowded.all():
            found = counts - (1 - 1 / CROWD) * _counts(score[crowded], edges)
        (estimates,), (errors,) = storey(found[None], mismatched[None])
        tail = largest_tail(estimates, errors)
        generator = torch.Generator().manual_seed(seed)
        drawn = (torch.poisson(each.expand(SAMPLES, -1), generator=generator) for each in (found, mismatched))
        low, high = storey(*drawn)[0][:, tail].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        share = float(estimates[tail])
        rate = false_discovery_rate(found, mismatched, share)
        others = float(rate @ (counts / counts.sum() - found / found.sum()))  # what crowds have more of than their votes
        low, share, high = (min(max(each + others, 0.0), 1.0) for each in (min(low, share), share, max(high, share)))
        return cls(share, (low, high), edges, (1 - rate).float())

    def trust_of(self, score: Tensor) -> Tensor:
        return self.trust[torch.bucketize(score, self.edges, right=True)]


def _counts(score: Tensor, edges: Tensor) -> Tensor:
    return torch.bincount(torch.bucketize(score, edges, right=True), minlength=len(edges) + 1).double()


def storey(found: Tensor, mismatched: Tensor) -> tuple[Tensor, Tensor]:
    """Storey's estimates (r, t) of the wrong pairs' share, and their standard errors.

    Counts (r, b) are of pairs and of mismatched pairs in bins of rising scores. Below a score that a share t of the mismatched
    pairs stays below there are N t of wrong pairs, were all wrong, and few right ones: found / (N t) estimates the wrong pairs'
    share from above (Storey 2002), with a Poisson error that is never 0. A small t leaves out more right pairs and counts fewer.
    """
    pairs = found.sum(1, keepdim=True)
    below, tail = found.cumsum(1)[:, :-1], (mismatched.cumsum(1) / mismatched.sum(1, keepdim=True))[:, :-1]
    if not tail.shape[1]:
        return found.new_ones(len(found), 1), found.new_zeros(len(found), 1)
    at = torch.searchsorted(tail.contiguous(), TAILS.expand(len(tail), -1).contiguous()).clamp_max(tail.shape[1] - 1)
    below, tail = below.gather(1, at), tail.gather(1, at).clamp_min(1 / pairs)
    return (below / pairs / tail).clamp_max(1), (below + 1).sqrt() / (pairs * tail)


def largest_tail(estimates: Tensor, errors: Tensor) -> int:
    """The place of the largest t (t,) whose estimate none contradicts by more than `ERRORS` of its errors: Lepski's rule."""
    return int((estimates <= (estimates + ERRORS * errors).amin()).nonzero().amax())


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
