"""The pairs of an audit: this rank's rows of features, and the moments of all ranks'."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from otter_losses.audit.features import Features, Rows
from otter_losses.audit.options import Options
from otter_losses.audit.projection import Moments, Told
from otter_losses.distributed.agreement import agree
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

NAMES = ("image_features", "text_features")


@dataclass(frozen=True)
class Pairs:
    """Features that were read once and are in order.

    Attributes:
        images, texts: this rank's.
        image_moments, text_moments: of all ranks' pairs.
        shard: whose pairs are whose.
    """

    images: Rows
    texts: Rows
    image_moments: Moments
    text_moments: Moments
    shard: BatchShard

    @classmethod
    def of(
        cls,
        features: tuple[Features, Features],
        options: Options,
        device: torch.device | str | None,
        group: "ProcessGroup | None",
        told: Told,
    ) -> "Pairs":
        """Raises TypeError or ValueError where something is wrong, in a group on every rank."""
        rows: list[Rows] = []
        moments: list[Moments] = []
        described: dict[str, Tensor | None] = dict.fromkeys(NAMES)

        def read() -> None:
            options.check()
            at = _device(device, features[0])
            rows.extend(Rows(name, each, at) for name, each in zip(NAMES, features, strict=True))
            _check_together(options, *rows)
            moments.extend(Moments.of(each, told) for each in rows)
            described.update((each.name, _description(each)) for each in rows)

        shard = WHOLE_BATCH
        if group is None:
            read()
        else:
            shard = BatchShard.of(group, agree(described, {}, repr(options), read, True, (), group).sizes)
        options.check_pairs(shard.batch_size(len(rows[0])), grouped=shard.is_distributed)
        return cls(rows[0], rows[1], moments[0].of_all(shard), moments[1].of_all(shard), shard)

    def check(self, check: Callable[[], None]) -> None:
        """Run what may raise; in a group an error on one rank is one on every rank."""
        if self.shard.is_distributed:
            agree({"image_features": _description(self.images)}, {}, "", check, True, (), self.shard.group)
        else:
            check()


def _device(device: torch.device | str | None, features: Features) -> torch.device:
    if device is None:
        return features.device if isinstance(features, Tensor) else torch.device("cpu")
    return torch.device(device)


def _check_together(options: Options, images: Rows, texts: Rows) -> None:
    if len(images) != len(texts):
        raise ValueError(
            f"image_features has {len(images)} rows and text_features {len(texts)}; need the same: row i of both is pair i."
        )
    if options.common_space and images.width != texts.width:
        raise ValueError(
            f"common_space is True for image_features of width {images.width} and text_features of {texts.width}; need one "
            "width. Take the features after the projection to the common space, or common_space=False."
        )


def _description(rows: Rows) -> Tensor:
    """A tensor of the features' type and shape that holds one number, for ranks to compare."""
    features = rows.features
    dtype = features.dtype if isinstance(features, Tensor) else torch.from_numpy(np.empty(0, features.dtype)).dtype
    return torch.zeros((), dtype=dtype, device=rows.device).expand(len(rows), rows.width)
