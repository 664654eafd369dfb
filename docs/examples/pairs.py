"""Real pairs for the examples: OpenMoji's drawings and their names, small enough to train a tiny model on in seconds."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.studies.data.installed.pairs import list_pairs, render


def load_pairs(count: int, size: int = 32) -> tuple[Tensor, list[str]]:
    """Pictures (count, 3, size, size) with values in [0, 1] and their captions, drawn evenly from all emoji."""
    emoji = [pair for pair in list_pairs() if pair.source == "openmoji"]
    chosen = [emoji[index * len(emoji) // count] for index in range(count)]
    pictures = np.stack([np.asarray(render(pair, size)) for pair in chosen])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, [pair.caption for pair in chosen]
