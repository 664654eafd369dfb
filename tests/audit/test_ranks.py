"""Several processes find what one does, of rows of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from otter_losses.audit import pair_trust
from tests.helpers.mismatched import mismatched
from tests.helpers.processes import run

SIZES = (170, 260, 90)
PAIRS = sum(SIZES)
OPTIONS = {"k": 12, "seed": 3}


def rows_of(rank: int) -> slice:
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))


def audited(rank: int, _: int, shared: bool, folder: str) -> dict[str, Any]:
    images, texts, _wrong = mismatched(PAIRS, 0.3, widths=(40, 40))
    rows = rows_of(rank)
    found: dict[str, Any] = {}
    for name in ("first", "again"):
        resume = f"{folder}/{rank}" if folder else None
        report = pair_trust(
            images[rows],
            texts[rows],
            group=dist.group.WORLD,
            common_space=shared,
            resume=resume,
            **OPTIONS,  # type: ignore[arg-type]
        )
        found[name] = vars(report)
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_ranks_find_what_one_process_does(tmp_path: Path, shared: bool) -> None:
    images, texts, _ = mismatched(PAIRS, 0.3, widths=(40, 40))
    expected = pair_trust(images, texts, common_space=shared, **OPTIONS)  # type: ignore[arg-type]
    pairs = {tuple(pair) for pair in expected.duplicates.tolist()}
    for rank, found in enumerate(run(audited, len(SIZES), tmp_path, shared, str(tmp_path) if shared else "")):
        rows = rows_of(rank)
        for report in (found["first"], found["again"]):
            assert torch.allclose(report["score"], expected.score[rows], atol=2e-3)
            assert torch.allclose(report["null_score"], expected.null_score, atol=2e-3)
            assert torch.allclose(report["trust"], expected.trust[rows], atol=0.02)
            for name in ("best_text", "best_image"):
                assert (report[name] == getattr(expected, name)[rows]).float().mean() > 0.99
            assert abs(report["wrong_share"] - expected.wrong_share) < 0.01
            assert {tuple(pair) for pair in report["duplicates"].tolist()} <= pairs


def errors(rank: int, _: int, case: str) -> str:
    images, texts, _wrong = mismatched(PAIRS, 0.3)
    rows = rows_of(rank)
    images, texts = images[rows], texts[rows]
    options: dict[str, Any] = dict(OPTIONS)
    if case == "NaN" and rank == 1:
        images[4, 2] = torch.nan
    if case == "k" and rank == 2:
        options["k"] = 13
    if case == "width" and rank == 2:
        texts = texts[:, :-1]
    if case == "memory" and rank == 0:
        options["max_memory"] = 1000
    if case == "shards":
        options["shards"] = 2
    try:
        pair_trust(images, texts, group=dist.group.WORLD, **options)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("NaN", "image_features has NaN or infinity in row 4"),
        ("k", "k=13"),
        ("width", "text_features is torch.float32 of shape"),
        ("memory", "max_memory is 1000; need at least"),
        ("shards", "group is given with search='exact' and shards=2; need search='exact' and shards=1"),
    ],
)
def test_an_error_on_one_rank_is_one_on_all(tmp_path: Path, case: str, message: str) -> None:
    for found in run(errors, len(SIZES), tmp_path, case):
        assert message in found
