"""Row blocks, panels and the choice between storing and recomputing change no number."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import functional
from otter_losses.ops import reference, similarity

Loss = Callable[..., Tensor]

LOSSES: dict[str, Callable[..., object]] = {
    "otter": functional.otter_loss,
    "otter, own teacher": functional.otter_loss,
    "otter, epsilon 0.005": functional.otter_loss,
    "otter, official": functional.otter_loss,
    "info_nce": functional.info_nce_loss,
    "label_smoothing": functional.label_smoothing_loss,
    "distillation": functional.distillation_loss,
    "siglip": functional.siglip_loss,
}


def evaluate(name: str, features: list[Tensor], max_memory: int) -> list[Tensor]:
    x, y = (each.clone().requires_grad_() for each in features[:2])
    scale = torch.tensor(14.3, dtype=x.dtype, requires_grad=True)
    options: dict[str, object] = {"max_memory": max_memory}
    if "own" not in name:
        options |= {"dist_image_features": features[2], "dist_text_features": features[3]}
    else:
        options |= {"gamma_image": 0.3, "gamma_text": 0.7}
    if "epsilon" in name:
        options["epsilon"] = 0.005
    if "official" in name:
        options["official"] = True
    value = LOSSES[name](x, y, scale, **options)
    assert isinstance(value, Tensor)
    return [value.detach(), *torch.autograd.grad(value, (x, y, scale))]


@pytest.mark.parametrize("name", LOSSES)
def test_blocks_and_panels_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    features = [F.normalize(torch.randn(600, 8, generator=generator, dtype=torch.float64), dim=-1) for _ in range(4)]
    whole = evaluate(name, features, max_memory=1 << 30)
    monkeypatch.setattr(similarity, "CHUNK_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(similarity, "PANEL", 64)
    assert len(similarity.row_chunks(600, 600, torch.device("cpu"))) == 3
    for max_memory in (1 << 30, 0):
        for found, expected in zip(evaluate(name, features, max_memory), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def test_the_default_blocks_at_a_size_that_needs_several_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = (F.normalize(torch.randn(1500, 8, generator=generator), dim=-1).requires_grad_() for _ in range(2))
    assert len(similarity.row_chunks(1500, 1500, x.device)) > 1
    value = functional.otter_loss(x, y, 14.3)
    assert isinstance(value, Tensor)
    expected = reference.otter_loss(x.double(), y.double(), 14.3, x.detach().double(), y.detach().double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 2e-6
