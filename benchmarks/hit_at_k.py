"""hit@k: the share of queries, in per cent, with a true answer among the k entries of a gallery that are most similar to them.

It is counted from ranks: that of a query's best true answer among all entries, 1 the first. A query is hit at k if its rank is at
most k. Which of equally similar entries comes first is a choice, and it is made where ranks are:

- `ranks_after_ties`, for the studies on drawn pairs: a true answer comes after all that tie with it, so that features which tell
  nothing apart score nothing;
- `ranks_in`, for the reproduction: in the order of a list of the most similar entries, which has ties by their position in the
  gallery, so that of two classes with the same name the first is found.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

KS = (1, 5, 10)
"""Those of the paper's table."""

Ranks = NDArray[Any]
"""(N,), whole numbers from 1 on."""


def ranks_after_ties(similarity: Tensor, labels: Tensor) -> Tensor:
    """Ranks (N,) from the similarity of N queries to all entries (N, M) and the position of each one's true entry (N,).

    Example:
        >>> ranks_after_ties(torch.tensor([[0.9, 0.1, 0.3], [0.5, 0.5, 0.5]]), torch.tensor([2, 0]))
        tensor([2, 3])
    """
    true = similarity.gather(1, labels[:, None])
    return (similarity >= true).sum(dim=1)


def ranks_in(top: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """Ranks (N,) in lists of the K entries most similar to N queries (N, K), best first; K + 1 if no true entry is listed.

    Args:
        top: positions in the gallery.
        answers: for every query the positions of its true entries, any number of them.

    Example:
        >>> ranks_in(torch.tensor([[4, 2], [0, 1], [3, 0]]), [[2, 4], [], [0]])
        tensor([1, 3, 2])
    """
    width = max(map(len, answers), default=0)
    true = torch.tensor([[*row, *[-1] * (width - len(row))] for row in answers], dtype=torch.int64).view(len(answers), width)
    correct = torch.zeros_like(top, dtype=torch.bool)
    for column in true.to(top.device).unbind(1):
        correct |= top == column[:, None]
    return (correct.cumsum(dim=1) == 0).sum(dim=1) + 1


def hit_counts(ranks: Ranks, ks: Sequence[int]) -> dict[int, int]:
    """The queries that are hit at each k."""
    return {k: int((ranks <= k).sum()) for k in ks}


def hit_at_k(ranks: Ranks, ks: Sequence[int]) -> dict[int, float]:
    """In per cent of the queries.

    The share is rounded before it is taken in per cent, as in the studies' committed results; `percentages` of the counts may
    differ in the last bit.
    """
    return {k: 100 * (count / len(ranks)) for k, count in hit_counts(ranks, ks).items()}


def percentages(counts: Mapping[int, int], queries: int) -> dict[int, float]:
    """Counts in per cent of the queries, as they add up over batches; a score of nothing is refused.

    Example:
        >>> percentages({1: 1, 5: 3}, 4)
        {1: 25.0, 5: 75.0}
    """
    if queries < 1:
        raise ValueError("there is no query to score: check the folder of images and the file of labels")
    return {k: 100 * count / queries for k, count in counts.items()}
