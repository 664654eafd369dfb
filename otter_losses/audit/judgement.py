"""From neighbours to what is told of every pair."""

import torch
from torch import Tensor

from otter_losses.audit import common_space
from otter_losses.audit.calibration import Calibration
from otter_losses.audit.evidence import Evidence, direction, products, scores
from otter_losses.audit.mismatches import mismatches
from otter_losses.audit.options import Options
from otter_losses.audit.pairs import Pairs
from otter_losses.audit.projection import Told, unit
from otter_losses.audit.report import PairTrust
from otter_losses.distributed.shard import BatchShard

ALIKE = 0.98
"""Cosine of projected features from which on two images, or two captions, are nearly the same."""


def judge(
    pairs: Pairs, options: Options, images: Tensor, texts: Tensor, told: Told, by_image: Tensor, by_text: Tensor
) -> PairTrust:
    """Of projected features (n, c), and the neighbours (n, k) of images and of captions."""
    shard = pairs.shard
    own = shard.rows(len(images), images.device)[:, None]
    alike = [[_are_alike(of, columns, shard) for of in (images, texts)] for columns in (by_image, by_text)]
    copies = [image & text for image, text in alike]  # the row's pair once more
    crowded = alike[0][0].all(1) | alike[1][1].all(1)
    told(len(images) // 4)
    witnesses = [columns.masked_fill(same, -1) for columns, same in zip((by_image, by_text), copies, strict=True)]
    evidence = [
        Evidence.of(direction(texts, witnesses[0], shard), texts, "image", shard),
        Evidence.of(images, direction(images, witnesses[1], shard), "text", shard),
    ]
    shares_space = options.common_space
    if shares_space is None:
        shares_space = common_space.is_shared(pairs)
    if shares_space:
        joint = common_space.projected(pairs, options.components, lambda _: None)
        evidence += [Evidence.of(*joint, "image", shard), Evidence.of(*joint, "text", shard)]
    told(len(images) // 2)
    found = shard.all_gather(scores(evidence, "image", own)).flatten()
    drawn = mismatches(by_image, by_text, options.seed, shard)
    null = scores(evidence, "image", drawn).masked_fill(drawn < 0, torch.nan)
    null = shard.all_gather(null).flatten()
    null = null[~null.isnan()]
    deviation, mean = torch.std_mean(null, correction=0)
    found, null = (((each - mean) / deviation.clamp_min(1e-12)).cpu() for each in (found, null))
    crowded = shard.all_gather(crowded.byte()).bool().cpu()
    calibration = Calibration.of(found, null, options.seed, crowded)
    score = found[shard.local_slice(len(images))]
    best_text = _best(by_image, witnesses[0], scores(evidence, "image", by_image))
    told(len(images) * 3 // 4)
    best_image = _best(by_text, witnesses[1], scores(evidence, "text", by_text))
    told(len(images))
    return PairTrust(
        trust=calibration.trust_of(score),
        score=score.float(),
        wrong_share=calibration.wrong_share,
        wrong_share_interval=calibration.wrong_share_interval,
        best_text=best_text,
        best_image=best_image,
        duplicates=_duplicates(own, (by_image, by_text), copies),
        null_score=null.float(),
        common_space=shares_space,
    )


def _are_alike(features: Tensor, columns: Tensor, shard: BatchShard) -> Tensor:
    """Whether those that the columns (n, k) name are nearly the same image, or caption, as the row's."""
    return products(features, features, columns, shard) >= ALIKE * unit(features.shape[1]) ** 2


def _best(columns: Tensor, witnesses: Tensor, scores: Tensor) -> Tensor:
    """The highest scoring of the rows that the columns (n, k) name, but for copies; of equal ones the first, of none -1."""
    scores = scores.masked_fill(witnesses < 0, -torch.inf)
    is_best = (scores == scores.amax(1, keepdim=True)) & (columns >= 0)
    first = columns.masked_fill(~is_best, torch.iinfo(columns.dtype).max).amin(1).long()
    return first.masked_fill(~is_best.any(1), -1).cpu()


def _duplicates(own: Tensor, columns: tuple[Tensor, Tensor], copies: list[Tensor]) -> Tensor:
    """Rows (m, 2), the smaller first."""
    both = [torch.stack((own.expand_as(rows)[same], rows[same].long()), 1) for rows, same in zip(columns, copies, strict=True)]
    found: Tensor = torch.unique(torch.cat(both).sort(1).values, dim=0)
    return found.cpu()
