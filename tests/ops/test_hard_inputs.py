"""Data on which plain-number transport breaks first, at every epsilon around the switch to logarithms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.functional import otter_loss, otter_targets
from otter_losses.ops import reference

PAIRS = 64


def opposed_pair() -> Tensor:
    """All features nearly alike but one, which is their opposite: row and column scalings of that pair are extreme together."""
    generator = torch.Generator().manual_seed(0)
    pole = F.one_hot(torch.tensor(0), 16).float()
    features = F.normalize(pole + 0.01 * torch.randn(PAIRS, 16, generator=generator), dim=-1)
    features[5] = -pole
    return features


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("epsilon", [0.15, 0.1, 0.08, 0.0751, 0.07, 0.01])
def test_a_pair_opposed_to_all_others(epsilon: float, official: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (F.normalize(torch.randn(PAIRS, 16, generator=generator), dim=-1).requires_grad_() for _ in range(2))
    teacher = opposed_pair()
    value = otter_loss(
        x, y, 14.3, dist_image_features=teacher, dist_text_features=teacher, epsilon=epsilon, alpha=0.3, official=official
    )
    assert isinstance(value, Tensor)
    v = teacher.double()
    if official:
        expected = sum(reference.released_loss(x.double(), y.double(), 14.3, v, v, alpha=0.3, epsilon=epsilon), torch.zeros(()))
    else:
        expected = reference.otter_loss(x.double(), y.double(), 14.3, v, v, alpha=0.3, epsilon=epsilon)
    bound = 2e-7 / epsilon
    assert abs(float(value.detach()) / float(expected.detach()) - 1) < bound
    for found, wanted in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < bound
    for target, oracle in zip(
        otter_targets(teacher, teacher, epsilon=epsilon), reference.otter_targets(v, v, epsilon), strict=True
    ):
        assert float((target - oracle).abs().sum(1).max()) < 20 * bound
