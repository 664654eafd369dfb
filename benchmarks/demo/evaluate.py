"""Zero-shot retrieval of names: flat hit@k."""

from collections.abc import Sequence

from torch import Tensor

KS = (1, 5, 10)


def hit_at_k(similarity: Tensor, labels: Tensor, ks: Sequence[int] = KS) -> dict[int, float]:
    """Percentage of pictures with the true name among the k most similar.

    `similarity` is (pictures, names), `labels` the column of each picture's true name. A name that ties with the
    true one counts as ranked before it, so that a constant similarity does not score.
    """
    true = similarity.gather(1, labels[:, None])
    rank = (similarity >= true).sum(dim=1)
    return {k: 100 * (rank <= k).double().mean().item() for k in ks}
