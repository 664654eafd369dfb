"""Captions that went to the wrong picture."""

import torch


def shuffle_captions(pairs: int, share: float, seed: int) -> list[int]:
    """For each pair the pair whose caption it is given: its own, or another's for `share` of the pairs.

    The chosen pairs pass their captions on in one random circle, so that each of them really gets another's caption.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(pairs, generator=generator)[: round(share * pairs)]
    given = torch.arange(pairs)
    given[chosen] = chosen.roll(1)
    return given.tolist()
