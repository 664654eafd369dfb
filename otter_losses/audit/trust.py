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
from otter_losses.audit.memory import tile_width
from otter_losses.audit.neighbours import Search, random_parts
from otter_losses.audit.options import Options
from otter_losses.audit.pairs import Pairs
from otter_losses.audit.projection import Projection, Told
from otter_losses.audit.report import PairTrust
from otter_losses.distributed.shard import BatchShard
from otter_losses.ops.memory import without_autocast

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
    """Estimate how far each pair is to be believed, from features of frozen encoders: no labels, no noise rate, no training.

    A right caption resembles the captions of similar images. Each modality is standardised and reduced to its principal
    components. The k nearest images of image i bring their captions, and caption i is compared with their mean. The same is
    done the other way round. The two modalities are not compared with each other, so any two encoders will do. Only if the
    encoders share a space, as CLIP's do, the cosine of image and caption counts as much as the neighbours. Every comparison is
    standardised among all captions (images) that could stand in its place; the score is the sum of the comparisons. Captions
    drawn at random show what wrong pairs look like. Storey's estimate gives the share of wrong pairs. The trust is
    ``1 - share * f0 / f``, where f is the density of the scores of all pairs and f0 that of the drawn pairs.

    A wrong caption from the right topic looks right, and a right pair that resembles no other looks wrong. So trust ranks pairs
    for training and for inspection. It is no proof, and `wrong_share` is no exact noise rate.

    The search is exact: projected features are rounded to whole numbers, so that float32 sums their products without error. Of
    equally near rows, the earlier counts as nearer. So the result does not depend on the memory. Except for the rounding of the
    projections, it does not depend on the ranks either. The search takes ``4 components N^2`` FLOP.

    A pair's exact or near copies do not vouch for it. These are pairs alike in image and in text by a cosine of 0.98. A pair
    that only its copies resemble gets the score of a wrong pair.

    Args:
        image_features: (N, D) of any scale, a tensor or a numpy array. An array may be mapped from a file (`numpy.memmap`),
            which is then read in blocks. The encoder must not have been trained on these pairs: one that was knows the wrong
            ones by heart.
        text_features: (N, E); row i is the caption of image i.
        k: number of neighbours to listen to. Every shard must have four times as many pairs. Fewer neighbours suit small
            topics, more suit much noise.
        components: number of dimensions kept of each modality, at most 1,024.
        common_space: whether images and captions are encoded in one space. None takes this to be so if the widths are equal,
            and cosines of given pairs lie clearly above those of mismatched ones.
        shards: number of random parts of the pairs within which neighbours are sought. More parts take a fraction of the time,
            but the neighbours are less near.
        search: ``"exact"``, or ``"faiss"`` for an index (``pip install 'otter-losses[faiss]'``) where exact search is too
            expensive.
        seed: seed of the drawn captions, of the bootstrap and of the shards.
        device: where to compute; it must support float64. By default this is where the images are, or the CPU for arrays.
        max_memory: bytes beyond the inputs. The default is chosen for speed. At least about ``N (12 components + 24 k + 256)``
            and 200 MB are needed. The value changes the time and nothing else. An index takes memory in addition.
        group: ranks that each bring their own rows, rank after rank. Trust is computed for all pairs together, and each rank
            gets that of its own. Row numbers in `best_text`, `best_image` and `duplicates` are counted through all ranks.
        progress: called as ``progress(stage, done, total)``, with the number of rows done.
        resume: a folder for finished blocks of the search; in a group, one folder per rank. An audit that was killed continues
            from there when it is called again with the same features and options.

    Returns:
        A `PairTrust`, on the CPU.

    Raises:
        TypeError, ValueError: features of other types or shapes; NaN or infinity in them (with the rows); equal rows
            throughout; too few pairs; too little memory; a folder that belongs to another audit; an index together with shards,
            or either of them in a group. In a group, the error comes on every rank.
        ImportError: ``search="faiss"`` without faiss.

    Example:
        >>> import torch
        >>> from otter_losses.audit import pair_trust
        >>> topics = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
        >>> noise = torch.randn(2, 600, 16, generator=torch.Generator().manual_seed(1)) / 5
        >>> images, captions = topics + noise[0], topics.flip(1).tanh() + noise[1]
        >>> captions[:90] = captions[torch.randperm(90, generator=torch.Generator().manual_seed(2))]  # 15 % on wrong images
        >>> report = pair_trust(images, captions)
        >>> report.trust[:90].mean() < 0.2 < 0.9 < report.trust[90:].mean()
        tensor(True)
        >>> 0.1 < report.wrong_share < 0.2
        True
        >>> report.alpha(low=0.05, high=0.5).shape  # for loss(..., alpha=)
        torch.Size([600])
    """
    options = Options(k, components, common_space, shards, search, seed)

    def told(stage: str) -> Told:
        return lambda done: progress(stage, done, len(image_features)) if progress is not None else None

    pairs = Pairs.of((image_features, text_features), options, device, group, told("read"))
    images = Projection.standardised("image_features", pairs.image_moments, components)(pairs.images, told("project images"))
    texts = Projection.standardised("text_features", pairs.text_moments, components)(pairs.texts, told("project texts"))
    finders: list[Search | IndexSearch] = []

    def prepare() -> None:
        kept = Kept(None if resume is None else Path(resume), _fingerprint(options, pairs.shard, images, texts))
        width = tile_width(pairs, options, max_memory)
        parts = random_parts(len(images), shards, seed)
        finders.append(IndexSearch(k, kept) if search == "faiss" else Search(k, width, pairs.shard, parts, kept))

    pairs.check(prepare)
    with without_autocast(images):
        neighbours = [finders[0](name, each, told(f"search {name}")) for name, each in (("images", images), ("texts", texts))]
        return judge(pairs, options, images, texts, told("score"), *neighbours)


def _fingerprint(options: Options, shard: BatchShard, images: Tensor, texts: Tensor) -> dict[str, object]:
    """What decides the neighbours."""
    digest = hashlib.sha256()
    for each in (images, texts):
        digest.update(each.cpu().numpy().data)
    return {
        "features": digest.hexdigest(),
        "k": options.k,
        "search": options.search,
        "shards": options.shards,
        "seed": options.seed,
        "rank": [shard.rank, *shard.sizes],
    }
