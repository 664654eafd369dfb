"""From scores to shares and rates, where densities are known."""

import math

import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from otter_losses.audit.calibration import Calibration, isotonic

PAIRS = 40_000


def drawn(share: float, shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of which a share is standard normal and the others are shifted, and as many of mismatches."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(PAIRS, generator=generator)
    scores[round(share * PAIRS) :] += shift
    return scores, torch.randn(PAIRS, generator=generator)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("shift", [2.0, 4.0])
def test_share_and_trust_of_normal_scores(share: float, shift: float) -> None:
    scores, null = drawn(share, shift)
    found = Calibration.of(scores, null, seed=0)
    assert abs(found.wrong_share - share) < 0.04
    points = torch.linspace(-2, shift + 2, 200)
    right = (1 - share) * torch.exp(points * shift - shift**2 / 2)
    assert (found.trust_of(points) - right / (right + share)).abs().mean() < 0.03


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_interval_holds_the_share_about_as_often_as_it_says(share: float) -> None:
    held = 0
    for seed in range(30):
        scores, null = drawn(share, 5.0, seed)
        low, high = Calibration.of(scores[::20].clone(), null[::10].clone(), seed).wrong_share_interval
        held += low <= share <= high
        assert 0 < high - low < 0.2
    assert held >= 25


def test_nothing_is_wrong_where_no_score_is_low() -> None:
    scores, null = drawn(0.0, 6.0)
    found = Calibration.of(scores, null, seed=0)
    assert found.wrong_share < 0.001
    assert found.trust_of(scores).min() > 0.9


def test_all_is_wrong_where_scores_are_those_of_mismatches() -> None:
    scores, null = drawn(1.0, 0.0)
    found = Calibration.of(scores, null, seed=0)
    assert found.wrong_share > 0.95
    assert found.trust_of(scores).mean() < 0.05


def test_trust_never_falls() -> None:
    scores, null = drawn(0.5, 1.0)
    trust = Calibration.of(scores[:900], null[:700], seed=0).trust_of(scores.sort().values)
    assert (trust.diff() >= 0).all()
    assert trust.min() >= 0
    assert trust.max() <= 1


def test_equal_scores_tell_nothing() -> None:
    found = Calibration.of(torch.zeros(50), torch.zeros(70), seed=0)
    assert found.wrong_share == 1
    assert found.trust_of(torch.zeros(2)).max() < 1e-6


def test_more_scores_than_float32_counts() -> None:
    scores = torch.linspace(-1, 1, 2**23 + 2)
    assert Calibration.of(scores, scores, seed=0).wrong_share > 0.9


def test_without_mismatches_nothing_is_told() -> None:
    found = Calibration.of(torch.randn(4), torch.empty(0), seed=0)
    assert found.wrong_share == 1
    assert found.wrong_share_interval[1] == 1


def test_crowds_count_as_one_and_are_told_by_their_trust() -> None:
    """In a narrow crowd, which is no mismatch's distribution, among right pairs."""
    generator = torch.Generator().manual_seed(0)
    right, crowd = 6 + torch.randn(9000, generator=generator), 0.3 + 0.3 * torch.randn(1000, generator=generator)
    scores, null = torch.cat((right, crowd)), torch.randn(PAIRS, generator=generator)
    alone, known = (Calibration.of(scores, null, 0, crowded) for crowded in (None, torch.arange(10_000) >= 9000))
    assert alone.trust_of(crowd).mean() > 0.8
    assert known.trust_of(crowd).mean() < 0.5
    assert known.wrong_share == pytest.approx(0.1 * float(1 - known.trust_of(crowd).mean()), abs=0.01)
    assert known.trust_of(right).mean() > 0.99


def test_isotonic_is_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.rand(2, 300, generator=generator, dtype=torch.float64)
    values += torch.linspace(0, 1, 300)
    other = IsotonicRegression().fit_transform(range(300), values.numpy(), sample_weight=weights.numpy())
    assert math.isclose(float((isotonic(values, weights) - torch.from_numpy(other)).abs().max()), 0, abs_tol=1e-12)
