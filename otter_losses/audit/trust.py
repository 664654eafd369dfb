"""Which pairs of image and caption belong together, from features of frozen encoders."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from otter_losses.audit.approximate import IndexSearch
from otter_losses.audit.features import Features
from otter_losses.audit.judgement import judge
from otter_losses.audit.kept import Kept
from otter_losses.audit.neighbours import Search, random_parts
from otter_losses.audit.options import Options
from otter_losses.audit.pairs import Pairs
from otter_losses.audit.projection import Projection, Told
from otter_losses.audit.report import PairTrust
from otter_losses.distributed.shard import BatchShard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

Progress = Callable[[str, int, int], None]


def pair_trust(
    image_features: Features,
    text_features: Features,
    k: int = 20,
    *,
    components: int = 256,
    common_space: bool | None = None,
    shards: int = 1,
    search: Literal["exact", "faiss"] = "exact",
    seed: int = 0,
    device: torch.device | str | None = None,
    max_memory: int | None = None,
    group: "ProcessGroup | None" = None,
    progress: Progress | None = None,
    resume: str | Path | None = None,
) -> PairTrust:
    """DOC"""
    options = Options(k, components, common_space, shards, search, seed)

    def told(stage: str) -> Told:
        return lambda done: progress(stage, done, len(image_features)) if progress is not None else None

    pairs = Pairs.of((image_features, text_features), options, device, group, told("read"))
    images = Projection.standardised("image_features", pairs.image_moments, components)(pairs.images, told("project images"))
    texts = Projection.standardised("text_features", pairs.text_moments, components)(pairs.texts, told("project texts"))
    kept = Kept(None if resume is None else Path(resume), _fingerprint(options, pairs.shard, images, texts))
    find = (
        IndexSearch(k, kept) if search == "faiss" else Search(k, 4096, pairs.shard, random_parts(len(images), shards, seed), kept)
    )
    image_neighbours = find("images", images, told("search images"))
    text_neighbours = find("texts", texts, told("search texts"))
    return judge(pairs, options, images, texts, image_neighbours, text_neighbours)


def _fingerprint(options: Options, shard: BatchShard, images: Tensor, texts: Tensor) -> dict[str, object]:
    """What decides the neighbours."""
    digest = hashlib.sha256()
    for each in (images, texts):
        digest.update(each.cpu().numpy())
    return {
        "features": digest.hexdigest(),
        "k": options.k,
        "search": options.search,
        "shards": options.shards,
        "seed": options.seed,
        "rank": [shard.rank, *shard.sizes],
    }
