"""Captions that went to the wrong picture."""

from collections.abc import Sequence

import torch


def shuffle_captions(pairs: int, share: float, seed: int, sources: Sequence[str] | None = None) -> list[int]:
    """For each pair the pair whose caption it is given: its own, or another's for `share` of the pairs.

    The chosen pairs pass their captions on in one random circle, so that each of them really gets another's caption. With
    `sources`, one a pair, there is a circle for each of them: a wrong caption is then one of the same source.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(pairs, generator=generator)[: round(share * pairs)]
    given = torch.arange(pairs)
    circles = [chosen]
    if sources is not None:
        circles = [chosen[[sources[index] == source for index in chosen.tolist()]] for source in sorted(set(sources))]
    for circle in circles:
        given[circle] = circle.roll(1)
    return given.tolist()
