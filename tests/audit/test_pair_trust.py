"""Which pairs are found to be wrong, by the company they keep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from otter_losses import OTTERLoss
from otter_losses.audit import PairTrust, features, pair_trust
from otter_losses.audit.memory import CPU_TILE, LEAST_TILE, TILE_BYTES, held_bytes
from otter_losses.audit.neighbours import Search
from tests.helpers.mismatched import area_under_curve, mismatched
from tests.helpers.peak import Peak

FIELDS = ("trust", "score", "best_text", "best_image", "duplicates", "null_score")


def same(one: PairTrust, other: PairTrust) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@pytest.fixture(scope="module")
def report() -> tuple[PairTrust, Tensor]:
    images, texts, wrong = mismatched(3000, 0.3)
    return pair_trust(images, texts), wrong


def test_wrong_pairs_are_told_from_right_ones(report: tuple[PairTrust, Tensor]) -> None:
    found, wrong = report
    assert area_under_curve(found.score, wrong) > 0.97
    assert found.trust[wrong].mean() < 0.2 < 0.9 < found.trust[~wrong].mean()
    low, high = found.wrong_share_interval
    assert 0.25 < low <= found.wrong_share <= high < 0.35
    assert not found.common_space


@pytest.mark.parametrize(("share", "noise"), [(0.3, 0.7), (0.3, 1.3), (0.6, 1.0)])
def test_trust_is_the_share_of_right_pairs_among_those_so_trusted(share: float, noise: float) -> None:
    images, texts, wrong = mismatched(6000, share, noise=noise, seed=1)
    found = pair_trust(images, texts)
    for group in found.trust.argsort().tensor_split(5):
        assert abs(float(found.trust[group].mean() - (~wrong[group]).float().mean())) < 0.1


@pytest.mark.parametrize("noise", [0.5, 1.0, 1.3])
def test_no_alarm_on_clean_pairs(noise: float) -> None:
    images, texts, _ = mismatched(2500, 0.0, noise=noise, seed=2)
    found = pair_trust(images, texts)
    assert found.wrong_share < 0.03
    assert (found.trust > 0.5).float().mean() > 0.98


def test_all_pairs_wrong() -> None:
    images, texts, _ = mismatched(2500, 1.0, seed=3)
    found = pair_trust(images, texts)
    assert found.wrong_share > 0.9
    assert found.trust.mean() < 0.1


def test_trust_is_monotone_in_score_and_gives_a_loss_its_alpha(report: tuple[PairTrust, Tensor]) -> None:
    found, _ = report
    assert (found.trust[found.score.argsort()].diff() >= 0).all()
    assert found.trust.min() >= 0
    assert found.trust.max() <= 1
    alpha = found.alpha(low=0.1, high=0.4)
    assert torch.allclose(alpha, 0.1 + 0.3 * found.trust)
    x, y = torch.nn.functional.normalize(torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert OTTERLoss()(x, y, 10.0, alpha=alpha[:8]).isfinite()


def test_the_best_other_caption_is_of_the_image_s_topic() -> None:
    images, texts, wrong = mismatched(2000, 0.2, noise=0.3, topics=12, seed=4)
    found = pair_trust(images, texts)
    rows = torch.arange(2000)
    assert (found.best_text != rows).all()
    assert (found.best_image != rows).all()
    clean = mismatched(2000, 0.0, noise=0.3, topics=12, seed=4).texts
    similarity = torch.nn.functional.normalize(clean - clean.mean(0))
    suits = (similarity * torch.nn.functional.normalize(texts - clean.mean(0))[found.best_text]).sum(1)
    given = (similarity * torch.nn.functional.normalize(texts - clean.mean(0))).sum(1)
    assert suits[wrong].mean() > 0.5 > given[wrong].mean() + 0.3
    shown = torch.nn.functional.normalize(images - images.mean(0))
    assert (shown[found.best_image] * shown).sum(1)[~wrong].mean() > 0.5


def test_score_is_in_deviations_of_mismatched_pairs(report: tuple[PairTrust, Tensor]) -> None:
    found, wrong = report
    assert abs(float(found.null_score.mean())) < 1e-5
    assert abs(float(found.null_score.std()) - 1) < 1e-3
    assert abs(float(found.score[wrong].mean())) < 0.25


# ---- the same, whatever the memory, the type, the order ----


def test_same_for_any_memory(report: tuple[PairTrust, Tensor]) -> None:
    images, texts, _ = mismatched(3000, 0.3)
    least = held_bytes(3000, 96, 96, 20) + LEAST_TILE * TILE_BYTES * features.BLOCK_ROWS
    assert same(pair_trust(images, texts, max_memory=least), report[0])
    assert same(pair_trust(images, texts), report[0])
    with pytest.raises(ValueError, match=f"max_memory is {least - 1 - (1 << 20)}; need at least {least} bytes for 3000 pairs"):
        pair_trust(images, texts, max_memory=least - 1 - (1 << 20))


@pytest.mark.parametrize(("pairs", "width", "k", "shared"), [(3000, 64, 5, False), (9000, 64, 30, True), (9000, 128, 10, True)])
def test_peak_is_within_what_is_stated(pairs: int, width: int, k: int, shared: bool) -> None:
    images, texts, _ = mismatched(pairs, 0.2, widths=(width, width))
    limit = held_bytes(pairs, width, width, k) + CPU_TILE // 2 * TILE_BYTES * features.BLOCK_ROWS
    with Peak() as counted:
        pair_trust(images, texts, k, common_space=shared, max_memory=limit)
    assert limit / 4 < counted.most <= limit


def test_peak_is_within_what_is_stated_where_all_rows_tie() -> None:
    images, texts = (torch.eye(2)[torch.arange(5000) % 2] for _ in range(2))
    limit = held_bytes(5000, 2, 2, 20) + LEAST_TILE * 4 * TILE_BYTES * features.BLOCK_ROWS
    with Peak() as counted:
        pair_trust(images, texts, max_memory=limit)
    assert counted.most <= limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_their_values(dtype: torch.dtype) -> None:
    images, texts, _ = mismatched(500, 0.3)
    images, texts = images.to(dtype), texts.to(dtype)
    assert same(pair_trust(images, texts), pair_trust(images.double(), texts.double()))


def test_arrays_maps_and_strides_are_their_values(tmp_path: Path) -> None:
    images, texts, _ = mismatched(700, 0.3)
    expected = pair_trust(images, texts)
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert same(pair_trust(mapped, texts.numpy()), expected)
    assert same(pair_trust(images.T.contiguous().T, texts.repeat(1, 2)[:, :80].requires_grad_()), expected)
    assert same(pair_trust(np.repeat(images.numpy(), 2, axis=0)[::2], texts), expected)


def test_same_in_any_region() -> None:
    images, texts, _ = mismatched(500, 0.3)
    expected = pair_trust(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(pair_trust(images, texts), expected)
    with torch.inference_mode():
        assert same(pair_trust(images, texts), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert same(pair_trust(images, texts), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_scale_and_offset_of_a_dimension_change_nothing() -> None:
    images, texts, _ = mismatched(700, 0.3)
    expected = pair_trust(images, texts)
    other = pair_trust(images * 2 ** torch.arange(-48, 48).div(2).round(), torch.cat((texts + 3, torch.full((700, 2), 7.0)), 1))
    assert torch.allclose(other.score, expected.score, atol=0.02)
    assert (other.trust - expected.trust).abs().mean() < 0.02


def test_modalities_swapped() -> None:
    images, texts, _ = mismatched(700, 0.3)
    one, other = pair_trust(images, texts), pair_trust(texts, images)
    assert torch.equal(one.best_text, other.best_image)
    assert torch.allclose(one.score, other.score, atol=0.1)


def test_components_are_those_there_are() -> None:
    images, texts, wrong = mismatched(900, 0.3, noise=0.3, widths=(30, 6))
    repeated = torch.cat((images, images[:, :20], torch.ones(900, 2)), 1)
    found = pair_trust(repeated, texts, components=40)
    assert area_under_curve(found.score, wrong) > 0.85


# ---- one space ----


def in_one_space(pairs: int, share: float, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that no others resemble, whose captions point where their images do."""
    generator = torch.Generator().manual_seed(5)
    shown, one, other = torch.randn(3, pairs, width, generator=generator)
    texts = shown + other + 5
    moved = torch.randperm(pairs, generator=generator)[: round(share * pairs)]
    texts[moved] = texts[moved.roll(1)]
    return shown + one, texts, torch.zeros(pairs, dtype=torch.bool).index_fill_(0, moved, True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_common_space_is_found_and_its_cosine_joins_in(share: float) -> None:
    images, texts, wrong = in_one_space(1500, share)
    found = pair_trust(images, texts)
    assert found.common_space
    if share:
        without = pair_trust(images, texts, common_space=False)
        missed = [1 - area_under_curve(each.score, wrong) for each in (found, without)]
        assert missed[0] < missed[1] / 2
    assert abs(found.wrong_share - share) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_one_width_is_not_one_space(seed: int) -> None:
    images, texts, _ = mismatched(1500, 0.0, widths=(90, 90), seed=seed)
    assert not pair_trust(images, texts).common_space


# ---- copies ----


def test_the_same_pair_twice_does_not_vouch_for_itself() -> None:
    images, texts, wrong = mismatched(1500, 0.3, seed=6)
    rows = wrong.nonzero().flatten()[:200]
    repeated = torch.cat((torch.arange(1500), *[rows] * 8))
    noise = 1e-4 * torch.randn(1600, 96, generator=torch.Generator().manual_seed(0))
    copied = images[repeated]
    copied[1500:] += noise
    found = pair_trust(copied, texts[repeated])
    assert found.trust[wrong[repeated]].mean() < 0.4
    groups = {tuple(pair) for pair in found.duplicates.tolist()}
    assert {(int(repeated[row]), row) for row in range(1500, 3100)} <= groups
    assert all(repeated[one] == repeated[other] for one, other in groups)
    assert (found.duplicates[:, 0] < found.duplicates[:, 1]).all()


def test_one_caption_on_many_images_is_no_duplicate() -> None:
    images, texts, _ = mismatched(1500, 0.3, seed=7)
    found = pair_trust(images, texts[torch.arange(1500) // 3 * 3])
    assert len(found.duplicates) == 0


def with_alike(rows: int, wrong: bool, side: str) -> PairTrust:
    """Clean pairs, but for the first rows: these share one image or one caption, which suits them or does not."""
    images, texts, _ = mismatched(2400, 0.0, seed=8)
    generator = torch.Generator().manual_seed(0)
    shared, own = (images, texts) if side == "image" else (texts, images)
    if not wrong:
        own[:rows] = own[0] + 0.3 * own[0].std() * torch.randn(rows, own.shape[1], generator=generator)
    shared[:rows] = shared[0] if not wrong else torch.randn(shared.shape[1], generator=generator)
    return pair_trust(images, texts)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("rows", [40, 240])
def test_what_many_pairs_share_is_trusted_where_it_suits_them(side: str, rows: int) -> None:
    """A placeholder's pairs are all wrong together; a caption of a whole category is right."""
    placeholder, category = with_alike(rows, True, side), with_alike(rows, False, side)
    assert placeholder.trust[:rows].mean() < 0.4
    assert placeholder.trust[rows:].mean() > 0.97
    assert placeholder.wrong_share > 0.5 * rows / 2400
    assert category.trust[:rows].mean() > 0.9
    assert category.wrong_share < 0.02


@pytest.mark.parametrize("seed", range(9, 12))
def test_many_copies_of_a_wrong_pair_are_not_trusted(seed: int) -> None:
    images, texts, _ = mismatched(2400, 0.0, seed=seed)
    other = int((images @ images[0]).argmin())  # of another topic for sure
    images, texts = (torch.cat((of, of[row].expand(240, -1))) for of, row in ((images, 0), (texts, other)))
    found = pair_trust(images, texts)
    assert found.trust[2400:].max() < 0.5
    assert found.trust[:2400].mean() > 0.97


# ---- shards ----


def test_shards_cost_little_where_topics_are_large() -> None:
    images, texts, wrong = mismatched(4000, 0.3, noise=1.0, topics=20, seed=8)
    whole, parts = (area_under_curve(pair_trust(images, texts, shards=shards).score, wrong) for shards in (1, 4))
    assert 0.9 < parts < whole < parts + 0.02


# ---- progress and bad input ----


def test_rows_of_which_the_search_finds_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search.__call__

    def sometimes(self: Search, *arguments: Any) -> Tensor:
        found = search(self, *arguments)
        found[7] = -1
        return found

    monkeypatch.setattr(Search, "__call__", sometimes)
    images, texts, _ = mismatched(300, 0.3)
    found = pair_trust(images, texts)
    for best in (found.best_text, found.best_image):
        assert (best == -1).nonzero().flatten().tolist() == [7]
        assert best.max() < 300
    assert found.trust.isfinite().all()


def test_progress_is_told_to_the_end() -> None:
    images, texts, _ = mismatched(300, 0.3)
    told: list[tuple[str, int, int]] = []
    pair_trust(images, texts, progress=lambda *now: told.append(now))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["read", "project images", "project texts", "search images", "search texts", "score"]
    assert {stage for stage, done, total in told if done == total == 300} == set(stages)


X, Y, _ = mismatched(200, 0.0, widths=(48, 40))


def holed(rows: list[int], value: float) -> Tensor:
    return Y.index_fill(0, torch.tensor(rows), value)


@pytest.mark.parametrize(
    ("images", "texts", "options", "error", "message"),
    [
        (X.tolist(), Y, {}, TypeError, "image_features is a list; need a torch.Tensor or a numpy array"),
        (X, Y.int(), {}, TypeError, "text_features has dtype torch.int32; need float64"),
        (X, Y.int().numpy(), {}, TypeError, r"text_features has dtype int32; need .*astype\('float32'\)"),
        (X[0], Y, {}, ValueError, r"image_features has shape \(48,\); need \(N, D\)"),
        (X[:, :0], Y, {}, ValueError, r"image_features has shape \(200, 0\); need at least one feature"),
        (X, Y[:-3], {}, ValueError, "image_features has 200 rows and text_features 197; need the same"),
        (X, holed([7], torch.nan), {}, ValueError, "text_features has NaN or infinity in row 7; need finite .*both modalities"),
        (X, holed(list(range(5, 19)), torch.inf), {}, ValueError, "in rows 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 4 more; need"),
        (
            X,
            Y * torch.ones(200, 1).index_fill(0, torch.tensor([3]), 1e6),
            {},
            ValueError,
            "1,000 times the median's in row 3; need",
        ),
        (X, Y[:1].expand(200, 40), {}, ValueError, "text_features has equal rows; need features that differ"),
        (X, Y, {"k": 51}, ValueError, "there are 200 pairs, and k is 51; need at least 204 pairs, 4 for each neighbour"),
        (X, Y, {"shards": 3}, ValueError, "200 pairs, and k is 20 and shards 3; need at least 240 pairs.* in each shard"),
        (X, Y, {"k": 0}, ValueError, "k is 0; need an int of at least 1"),
        (X, Y, {"k": 2.0}, TypeError, "k is 2.0, a float; need an int"),
        (X, Y, {"components": 2000}, ValueError, "components is 2000; need an int of at most 1024"),
        (X, Y, {"seed": -1}, ValueError, "seed is -1; need an int of at least 0"),
        (X, Y, {"search": "near"}, ValueError, "search is 'near'; need 'exact' or 'faiss'"),
        (X, Y, {"search": "faiss", "shards": 2}, ValueError, "search is 'faiss' and shards is 2; need shards=1"),
        (X, Y, {"common_space": 1}, TypeError, "common_space is 1; need True, False, or None"),
        (X, Y, {"common_space": True}, ValueError, "common_space is True for image_features of width 48 and text_features of 40"),
        (X, Y, {"max_memory": -1}, ValueError, "max_memory is -1; need an int of at least 0"),
    ],
)
def test_bad_input(images: Any, texts: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair_trust(images, texts, **options)


@pytest.mark.parametrize("bounds", [(0.5, 0.1), (-0.1, 0.5), (0.1, 1.5)])
def test_alpha_s_bounds(report: tuple[PairTrust, Tensor], bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="need a finite number of at least"):
        report[0].alpha(*bounds)
