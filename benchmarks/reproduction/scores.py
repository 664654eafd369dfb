"""Flat hit@k and retrieval R@K from features, block by block: the similarities of all pairs are never held at once.

`benchmarks.hit_at_k` says what hit@k is; a query without any true answer is a miss. R@K is the same number, asked of captions for
an image and of images for a caption.

Ties go to the entry that comes first in the gallery, so that every score is reproducible and no block size can change which of
equal entries is taken. Entries that are the same text share one feature and one product (`Gallery.of`), and so tie exactly; other
entries are told apart by their float32 similarity, whose last bit may depend on the hardware and on the block size.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.hit_at_k import hit_counts, percentages, ranks_in

ROWS, COLUMNS = 1024, 8192
"""Queries and gallery entries of one block: 64 MiB of sorting keys."""

INDEX = 0xFFFFFFFF
"""The lower half of a sorting key."""


class Gallery(NamedTuple):
    """What is searched: entry j has the feature ``features[of[j]]``, so that equal entries share one."""

    features: Tensor
    of: Tensor

    @classmethod
    def plain(cls, features: Tensor) -> "Gallery":
        """Every row an entry of its own."""
        return cls(features, torch.arange(len(features)))


class Retrieval(NamedTuple):
    """R@K in per cent, both ways."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def top_k(queries: Tensor, gallery: Tensor | Gallery, k: int, *, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """The k gallery entries most similar to each query by cosine, best first, ties by position in the gallery.

    Args:
        queries: (N, D), of any floating type; compared in float32.
        gallery: (M, D), or a `Gallery` of M entries.
        k: between 1 and M.
        rows: queries of a block.
        columns: different features of a block.

    Returns:
        (N, k) positions in the gallery, int64, on the queries' device.

    Raises:
        ValueError: shapes that do not fit, a k out of range, features that are not finite or have no length.

    Example:
        >>> top_k(torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]), 2)
        tensor([[1, 2]])
    """
    gallery = gallery if isinstance(gallery, Gallery) else Gallery.plain(gallery)
    if queries.ndim != 2 or gallery.features.ndim != 2 or queries.shape[1] != gallery.features.shape[1]:
        raise ValueError(
            f"queries and gallery must be (N, D) and (M, D), got {tuple(queries.shape)} and {tuple(gallery.features.shape)}: "
            "encode both with the same model"
        )
    entries = len(gallery.of)
    if not 1 <= k <= entries:
        raise ValueError(f"k must be between 1 and the {entries} entries of the gallery, got {k}")
    features = _unit(gallery.features.to(queries.device), "gallery")
    of = gallery.of.to(queries.device)
    order = of.argsort(stable=True)  # entries by feature: those of a block of features are neighbours
    starts = torch.searchsorted(of[order].contiguous(), torch.arange(0, len(features) + columns, columns, device=of.device))
    found = []
    for block in torch.split(_unit(queries, "queries"), rows):
        best = block.new_empty(len(block), 0, dtype=torch.int64)
        for number, part in enumerate(torch.split(features, columns)):
            positions = order[starts[number] : starts[number + 1]]
            products = block @ part.T
            keys = _keys(products[:, of[positions] - number * columns], positions)
            best = torch.cat([best, keys], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
        found.append(~best & INDEX)
    return torch.cat(found) if found else of.new_empty(0, k)


def count_hits(
    queries: Tensor, gallery: Tensor | Gallery, answers: Sequence[Sequence[int]], ks: Sequence[int], **blocks: int
) -> dict[int, int]:
    """The queries with at least one of their true answers among the k most similar entries, for every k.

    Args:
        queries: (N, D) features.
        gallery: (M, D) features, or a `Gallery`.
        answers: for every query the positions of its true entries; none at all is a miss.
        ks: each between 1 and M.
        blocks: ``rows`` and ``columns`` of `top_k`.

    Raises:
        ValueError: as `top_k` does, or answers that are not one per query or not in the gallery.

    Example:
        >>> count_hits(torch.eye(3), torch.eye(3), [[0], [2, 0], []], ks=(1, 2))
        {1: 1, 2: 2}
    """
    entries = len(gallery.of) if isinstance(gallery, Gallery) else len(gallery)
    if len(answers) != len(queries):
        raise ValueError(f"answers must be one sequence per query: got {len(answers)} for {len(queries)} queries")
    wrong = next((position for true in answers for position in true if not 0 <= position < entries), None)
    if wrong is not None:
        raise ValueError(f"answers name entry {wrong}, but the gallery has {entries}: the labels belong to another class bank")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be at least one number from 1 on, got {list(ks)}; no k asked for may fit the gallery")
    top = top_k(queries, gallery, max(ks), **blocks)
    return hit_counts(ranks_in(top, answers).cpu().numpy(), ks)


def hit_at_k(
    queries: Tensor, gallery: Tensor | Gallery, answers: Sequence[Sequence[int]], ks: Sequence[int], **blocks: int
) -> dict[int, float]:
    """`count_hits` in per cent of all queries.

    Example:
        >>> hit_at_k(torch.eye(4), torch.eye(4), [[0], [1], [0], []], ks=(1, 2))
        {1: 50.0, 2: 75.0}
    """
    return percentages(count_hits(queries, gallery, answers, ks, **blocks), len(queries))


def retrieval(
    images: Tensor, texts: Tensor | Gallery, owners: Sequence[int], ks: Sequence[int] = (1, 5, 10), **blocks: int
) -> Retrieval:
    """R@K of captions for images and of images for captions; an image may have several captions.

    Args:
        images: (N, D) features.
        texts: (M, D) features, or a `Gallery` of M captions.
        owners: for every caption the position of its image.
        ks: each between 1 and the smaller of N and M.

    Raises:
        ValueError: as `count_hits` does, or owners that are not one per caption.

    Example:
        >>> retrieval(torch.eye(2), torch.tensor([[1.0, 0.0], [0.9, 0.1], [1.0, 0.2]]), [0, 0, 1], ks=(1, 2))
        Retrieval(image_to_text={1: 100.0, 2: 100.0}, text_to_image={1: 66.66666666666667, 2: 100.0})
    """
    texts = texts if isinstance(texts, Gallery) else Gallery.plain(texts)
    if len(owners) != len(texts.of):
        raise ValueError(f"owners must name one image per caption: got {len(owners)} for {len(texts.of)} captions")
    captions: list[list[int]] = [[] for _ in range(len(images))]
    for caption, owner in enumerate(owners):
        if not 0 <= owner < len(images):
            raise ValueError(f"owners name image {owner} for caption {caption}, but there are {len(images)} images")
        captions[owner].append(caption)
    spread = texts.features[texts.of.to(texts.features.device)]
    return Retrieval(
        hit_at_k(images, texts, captions, ks, **blocks),
        hit_at_k(spread.to(images.device), images, [[owner] for owner in owners], ks, **blocks),
    )


def constant_hits(answers: Iterable[Sequence[int]], ks: Sequence[int]) -> dict[int, int]:
    """The queries that an answer hits which is the same for all: what a score must be compared with where labels are skewed.

    The answer takes, k times, the entry that is true for most of the queries not yet hit (ties: the first). Its hit@1 is the
    share of the most frequent label, the best that any constant answer can do.

    ImageNet 10K of Tencent ML-Images is the case in point. Its makers label an image with its category and with ALL of the
    category's ancestors in their hierarchy of four trees. So an image is labelled with a root if and only if its category lies in
    that root's tree, and the tree of "object, physical object" holds 90 % of the images: that answer, given without looking,
    has a hit@1 of 90 %, and flat hit@k over all 11,166 names rewards naming what is most general. The paper's models, which name
    the specific, reach 10 to 12 %. The leaves-only variant takes the ancestors out of bank and labels.

    Example:
        >>> constant_hits([[2, 5], [2, 4], [2], [1]], ks=(1, 2))
        {1: 3, 2: 4}
    """
    holders: dict[int, set[int]] = {}
    for query, true in enumerate(answers):
        for position in true:
            holders.setdefault(position, set()).add(query)
    hit: set[int] = set()
    hits = [0]
    for _ in range(max(ks)):
        hit |= max((holders[position] - hit for position in sorted(holders)), key=len, default=set())
        hits.append(len(hit))
    return {k: hits[k] for k in ks}


def _unit(features: Tensor, name: str) -> Tensor:
    """Features of length 1 in float32."""
    features = features.float()
    lengths = features.norm(dim=1)
    bad = ~(torch.isfinite(lengths) & (lengths > 0))
    if bad.any():
        rows = bad.nonzero().flatten()
        raise ValueError(
            f"{name} must be finite and not zero, but {len(rows)} of {len(features)} rows are not (the first: {int(rows[0])}): "
            "the model that encoded them is broken, or its precision overflows; evaluate an earlier checkpoint or in float32"
        )
    return normalize(features, dim=1)


def _keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Whole numbers that sort as (score, position backwards): a float's bits above, the position's complement below."""
    bits = scores.view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # below zero a float's bits grow downwards; -0.0 is 0.0
    return ordered * (INDEX + 1) + (INDEX - positions)
