"""Zero-shot retrieval of names: flat hit@k."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

KS = (1, 5, 10)


def ranks(similarity: Tensor, labels: Tensor) -> Tensor:
    """The true name's rank for each picture, 1 the best.

    `similarity` is (pictures, names), `labels` the column of each picture's true name. A name that ties with the
    true one counts as ranked before it, so that a constant similarity does not score.
    """
    true = similarity.gather(1, labels[:, None])
    return (similarity >= true).sum(dim=1)


def hits(ranks: NDArray[Any], k: int) -> float:
    """Percentage of pictures with the true name among the first k."""
    return 100 * float(np.mean(ranks <= k))


def hit_at_k(similarity: Tensor, labels: Tensor, ks: Sequence[int] = KS) -> dict[int, float]:
    """Percentage of pictures with the true name among the k most similar."""
    found = ranks(similarity, labels).numpy()
    return {k: hits(found, k) for k in ks}
