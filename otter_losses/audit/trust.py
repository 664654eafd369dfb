"""Which pairs of image and caption belong together, from features of frozen encoders."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from otter_losses.audit.report import PairTrust

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

Features = Any
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
    raise NotImplementedError
