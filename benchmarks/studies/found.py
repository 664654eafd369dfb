"""How well scores tell right pairs from those whose caption was shuffled."""

import torch
from torch import Tensor


def auc(score: Tensor, right: Tensor) -> float | None:
    """The chance that a right pair scores above a wrong one, a tie counting half; None unless there are both."""
    _, place, counts = score.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    rank = (counts.double().cumsum(0) - (counts - 1) / 2)[place]
    good, bad = int(right.sum()), int((~right).sum())
    above = rank[right].sum().item() - good * (good + 1) / 2
    return above / (good * bad) if good and bad else None


def recall(score: Tensor, right: Tensor) -> float | None:
    """The share of the wrong pairs that are among as many pairs of the lowest scores; None if none is wrong."""
    wrong = ~right
    count = int(wrong.sum())
    lowest = torch.argsort(score, stable=True)[:count]
    return wrong[lowest].sum().item() / count if count else None
