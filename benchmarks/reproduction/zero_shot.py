"""Flat hit@k of any model, from two callables, in batches::

encode_images(pixels)  # (B, 3, S, S) -> (B, D)
encode_texts(texts)    # list of B strings -> (B, D)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.hit_at_k import percentages

from . import scores
from .banks import PAPER_TEMPLATE, Bank, prompts
from .scores import Gallery

EncodeImages = Callable[[Tensor], Tensor]
EncodeTexts = Callable[[list[str]], Tensor]

KS = (1, 2, 5, 10)
"""The paper's."""


def class_gallery(
    encode_texts: EncodeTexts, bank: Bank, templates: Sequence[str] = (PAPER_TEMPLATE,), batch: int = 256
) -> Gallery:
    """The features of a bank's classes: the mean of the normalised features of the name in every template.

    Args:
        encode_texts: B strings to (B, D).
        bank: C classes; those of the same name share a feature.
        templates: prompts with ``{}`` where the name goes; several are an ensemble.
        batch: texts encoded at a time.

    Returns:
        A gallery of C entries.

    Raises:
        ValueError: no template or one without ``{}``; features that are not finite.

    Example:
        >>> bank = Bank(("ant", "bee"), ("0", "1"))
        >>> class_gallery(lambda texts: torch.tensor([[1.0, len(text)] for text in texts]), bank, ["{}", "one {}"]).features.shape
        torch.Size([2, 2])
    """
    if not templates:
        raise ValueError("templates must have at least one prompt")
    names, of = different(bank.names)
    features = encode_all(encode_texts, [prompt for name in names for prompt in prompts(name, templates)], batch)
    return Gallery(normalize(features, dim=1).view(len(names), len(templates), -1).mean(dim=1), of)


@dataclass
class ZeroShot:
    """Flat hit@k that grows batch by batch; only features of the class bank are held.

    Example:
        >>> zero_shot = ZeroShot(Gallery.plain(torch.eye(3)), ks=(1, 2))
        >>> zero_shot.add(torch.tensor([[1.0, 0.1, 0.0]]), [[1]])
        >>> zero_shot.add(torch.eye(3), [[0], [1], []])
        >>> zero_shot.scores, zero_shot.images, zero_shot.labelled
        ({'hit@1': 50.0, 'hit@2': 75.0}, 4, 3)
    """

    gallery: Gallery
    ks: Sequence[int] = KS
    images: int = 0
    labelled: int = 0
    hits: dict[int, int] = field(default_factory=dict)

    def add(self, features: Tensor, answers: Sequence[Sequence[int]]) -> None:
        """Features (B, D) of images and, for each, the positions of its true classes."""
        found = scores.count_hits(features, self.gallery, answers, self.ks)
        self.hits = {k: self.hits.get(k, 0) + count for k, count in found.items()}
        self.images += len(answers)
        self.labelled += sum(bool(true) for true in answers)

    @property
    def scores(self) -> dict[str, float]:
        """In per cent of all images, also those without a label."""
        return {f"hit@{k}": value for k, value in percentages(self.hits, self.images).items()}


def zero_shot(
    encode_images: EncodeImages,
    gallery: Gallery,
    batches: Iterable[tuple[Tensor, Sequence[Sequence[int]]]],
    ks: Sequence[int] = KS,
) -> ZeroShot:
    """hit@k over batches of images and the positions of their true classes.

    Raises:
        ValueError: features that are not finite, labels that are not in the gallery, a k above its number of classes.

    Example:
        >>> batches = [(torch.zeros(2, 3, 4, 4), [[0], [1]]), (torch.ones(1, 3, 4, 4), [[1]])]
        >>> encode = lambda images: torch.stack([torch.ones(len(images)), images.mean(dim=(1, 2, 3))], dim=1)
        >>> zero_shot(encode, Gallery.plain(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), batches, ks=(1,)).scores
        {'hit@1': 33.333333333333336}
    """
    total = ZeroShot(gallery, ks)
    with torch.inference_mode():
        for pixels, answers in batches:
            total.add(encode_images(pixels), answers)
    return total


def text_gallery(encode_texts: EncodeTexts, texts: Iterable[str], batch: int = 256) -> Gallery:
    """The features of texts; equal ones share theirs.

    Example:
        >>> text_gallery(lambda texts: torch.ones(len(texts), 2), ["a cat", "a dog", "a cat"]).of
        tensor([0, 1, 0])
    """
    names, of = different(texts)
    return Gallery(encode_all(encode_texts, names, batch), of)


def different(texts: Iterable[str]) -> tuple[list[str], Tensor]:
    """The different texts, and for each text its position among them."""
    positions: dict[str, int] = {}
    of = [positions.setdefault(text, len(positions)) for text in texts]
    return list(positions), torch.tensor(of)


def encode_all(encode_texts: EncodeTexts, texts: Sequence[str], batch: int) -> Tensor:
    """(len(texts), D) in float32; texts of like length are encoded together, which keeps padding short."""
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    parts = []
    for start in range(0, len(order), batch):
        part = [texts[position] for position in order[start : start + batch]]
        features = encode_texts(part)
        if features.ndim != 2 or len(features) != len(part):
            raise ValueError(f"encode_texts must give (B, D), a row per text; got {tuple(features.shape)} for {len(part)} texts")
        parts.append(features.float())
    return torch.cat(parts)[torch.tensor(order).argsort().to(parts[0].device)]
