"""What an audit found, made up, and files of features to audit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otter_losses.audit import PairTrust


def judged(scores: Sequence[float], **fields: Any) -> PairTrust:
    """Of these scores; trust by rank, the best other text in the next row and the best other image in the one before."""
    score = torch.tensor(scores, dtype=torch.float32)
    rows = torch.arange(len(score))
    found: dict[str, Any] = {
        "trust": score.argsort().argsort() / len(score),
        "score": score,
        "wrong_share": 0.25,
        "wrong_share_interval": (0.2, 0.31),
        "best_text": rows.roll(-1),
        "best_image": rows.roll(1),
        "duplicates": torch.empty(0, 2, dtype=torch.int64),
        "null_score": torch.linspace(-2, 2, 50),
        "common_space": False,
    }
    return PairTrust(**found | fields)


def save_topics(folder: Path, pairs: int = 240, seed: int = 0) -> list[int]:
    """images.npy and texts.npy of twelve topics, and the rows whose captions were exchanged, a tenth of them."""
    draw = np.random.default_rng(seed)
    topic, centre = np.arange(pairs) % 12, draw.normal(size=(12, 8))
    wrong = draw.choice(pairs, pairs // 10, replace=False)
    said = topic.copy()
    said[wrong] = (topic[wrong] + draw.integers(3, 9, len(wrong))) % 12
    for name, of in (("images", topic), ("texts", said)):
        vectors = (centre[of] + 0.2 * draw.normal(size=(pairs, 8))) @ draw.normal(size=(8, 24))
        np.save(folder / f"{name}.npy", vectors.astype(np.float32))
    return sorted(wrong.tolist())
