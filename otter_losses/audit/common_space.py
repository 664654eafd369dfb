"""Whether images and captions are encoded in one space, where their cosine tells something."""

import torch
from torch import Tensor

from otter_losses.audit.pairs import Pairs
from otter_losses.audit.projection import Projection, Told, principal

SAMPLE = 2048
"""Rows looked at on each rank."""

EFFECT = 0.5
"""How far the cosines of given pairs must lie above mismatched ones', in the latter's standard deviations: those of right pairs
in one space lie several above, those of unrelated spaces of one width a small part, by chance."""


def is_shared(pairs: Pairs) -> bool:
    """Whether given pairs are closer than mismatched ones in features of one width; by a sample of every rank's rows."""
    if pairs.images.width != pairs.texts.width:
        return False
    rows = slice(0, None, -(-len(pairs.images) // SAMPLE) or 1)
    image = torch.nn.functional.normalize(pairs.images.read(rows) - pairs.image_moments.mean, dim=1)
    text = torch.nn.functional.normalize(pairs.texts.read(rows) - pairs.text_moments.mean, dim=1)
    cosines = image @ text.T
    given = cosines.diagonal()
    others = cosines.numel() - len(given)
    sums = (given.sum(), cosines.sum() - given.sum(), cosines.square().sum() - given.square().sum())
    total = pairs.shard.all_reduce_sum_(torch.stack((*sums, sums[0].new_tensor(len(given)), sums[0].new_tensor(others))))
    mean, other, square = (total[:3] / total[[3, 4, 4]]).tolist()
    return bool(mean - other > EFFECT * max(square - other**2, 0.0) ** 0.5)


def projected(pairs: Pairs, components: int, told: Told) -> tuple[Tensor, Tensor]:
    """Images and captions (n, c), each about its own mean, on the components of the largest variance of both."""
    matrix = principal(pairs.image_moments.covariance + pairs.text_moments.covariance, components)
    image = Projection(pairs.image_moments.mean, matrix)(pairs.images, told)
    return image, Projection(pairs.text_moments.mean, matrix)(pairs.texts, told)
