"""The seven settings, fixed before any test score was seen, and what is counted over them."""

from dataclasses import dataclass

from benchmarks.studies.data.fetched.pairs import CLIP_ART, ICONS, TRAINING_DESIGNS
from benchmarks.studies.training.losses import METHODS

SOURCES = {"emoji": TRAINING_DESIGNS, "icons": ICONS, "clip art": (CLIP_ART,)}
ALL = tuple(SOURCES)


@dataclass(frozen=True)
class Setting:
    """What is trained on, with which captions, and through which head."""

    name: str
    sources: tuple[str, ...] = ALL
    keywords: bool = False
    """One keyword as the caption instead of the name."""
    shuffled: float = 0.0
    """Share of the captions that are another pair's."""
    layers: int = 1
    """Of the pictures' head."""


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("all"),
        Setting("all, 2 layers", layers=2),
        Setting("emoji + icons", ("emoji", "icons")),
        Setting("icons + clip art", ("icons", "clip art")),
        Setting("keywords", keywords=True),
        Setting("40 % shuffled", shuffled=0.4),
        Setting("40 % shuffled, 2 layers", shuffled=0.4, layers=2),
    )
}
TESTS = ("unseen emoji", "clip art")
PAPER = ("InfoNCE", "label smoothing", "KD", "OTTER")
"""The losses that the paper compares; METHODS has OTTER without Sinkhorn beside them."""

assert set(PAPER) <= set(METHODS)
