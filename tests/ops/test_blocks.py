"""Row blocks, panels and the choice between storing and recomputing change no number."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import functional
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import memory, reference, similarity

CASES: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in LOSSES},
    "otter, own teacher": ("otter", {"gamma_image": 0.3, "gamma_text": 0.7}),
    "otter, epsilon 0.005": ("otter", {"epsilon": 0.005}),
    "otter, official": ("otter", {"official": True}),
}
"""A loss and its options."""


def evaluate(name: str, features: list[Tensor], max_memory: int) -> list[Tensor]:
    x, y = (each.clone().requires_grad_() for each in features[:2])
    scale = torch.tensor(14.3, dtype=x.dtype, requires_grad=True)
    loss, options = CASES[name]
    teacher = {} if "own teacher" in name else {"dist_image_features": features[2], "dist_text_features": features[3]}
    value = LOSSES[loss].function(x, y, scale, **teacher, **options, max_memory=max_memory)
    assert isinstance(value, Tensor)
    return [value.detach(), *torch.autograd.grad(value, (x, y, scale))]


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_panels_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    features = [F.normalize(torch.randn(600, 8, generator=generator, dtype=torch.float64), dim=-1) for _ in range(4)]
    whole = evaluate(name, features, max_memory=1 << 30)
    monkeypatch.setattr(similarity, "PANEL", 64)
    with memory.limits(cpu_block_elements=1):
        assert len(memory.row_blocks(600, 600, torch.device("cpu"))) == 3
        for max_memory in (1 << 30, 0):
            for found, expected in zip(evaluate(name, features, max_memory), whole, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_the_default_blocks_at_a_size_that_needs_several_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = (F.normalize(torch.randn(1500, 8, generator=generator), dim=-1).requires_grad_() for _ in range(2))
    assert len(memory.row_blocks(1500, 1500, x.device)) > 1
    value = functional.otter_loss(x, y, 14.3)
    assert isinstance(value, Tensor)
    expected = reference.otter_loss(x.double(), y.double(), 14.3, x.detach().double(), y.detach().double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 2e-6
