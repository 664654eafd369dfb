"""Images with captions of other rows, at random: what wrong pairs look like."""

import torch
from torch import Tensor

from otter_losses.distributed.shard import BatchShard

MISMATCHES = 1 << 18
"""That are drawn, within the rounds of at least 1 and at most `MOST_ROUNDS`, in each of which every caption is drawn once."""

MOST_ROUNDS = 16


def mismatches(image_neighbours: Tensor, text_neighbours: Tensor, seed: int, shard: BatchShard) -> Tensor:
    """Rows (n, rounds) of captions for this rank's images; -1 where one's own neighbours hold the other.

    There the other pair would vouch for itself, as no wrong pair does. They are few, but for few pairs.
    """
    local, device = len(image_neighbours), image_neighbours.device
    pairs, own = shard.batch_size(local), shard.rows(local, device)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(min(-(-MISMATCHES // pairs), MOST_ROUNDS)):
        order = torch.randperm(pairs, generator=generator).to(device)
        captions, images = order[own], order.argsort()[own]
        holds_caption = (image_neighbours == captions[:, None]).any(1)
        holds_image = shard.all_gather((text_neighbours == images[:, None]).any(1).byte()).bool()
        drawn.append(captions.masked_fill((captions == own) | holds_caption | holds_image[captions], -1))
    return torch.stack(drawn, 1)
