"""How many kernels a step launches, torch's and ours: what a small batch costs on a GPU, where each takes the host 7 to 15 us."""

from typing import Any

import pytest
import torch

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH
from tests.helpers.batches import make_batch
from tests.helpers.launches import counted, of_step
from tests.helpers.losses import VARIANTS

pytest.importorskip("triton", reason="triton is there on Linux only")

SMALL, LARGE = 512, 2304
"""Pairs: with a round of Sinkhorn-Knopp in one launch; and with three, on 16-bit codes where features are half precision."""

OTTER = (25, 30, 36, 41)

BOUNDS = {
    "info_nce": (14, 19, 14, 19),
    "siglip": (15, 19, 15, 19),
    "label_smoothing": (24, 29, 24, 29),
    "distillation": (21, 26, 21, 26),
    "distillation, off the diagonal": (22, 27, 22, 27),
    "robust": (25, 30, 25, 30),
    "otter": OTTER,
    "otter, logarithms": OTTER,
    "otter, official": OTTER,
    "otter, official, logarithms": OTTER,
}
"""Of a small batch in bfloat16 and in float32, which is split and multiplied in parts; of a large one in both. One of them is
backward's own, which fills a 1."""


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the numbers, as on a device."""
    monkeypatch.setattr(checks, "may_read", lambda tensor: False)


def launched(name: str, pairs: int, dtype: torch.dtype, **call: Any) -> int:
    batch = make_batch(pairs, 32).to(dtype)
    bias = torch.tensor(-3.0, requires_grad=True) if name == "siglip" else None
    loss = VARIANTS[name](backend="triton")

    def step() -> torch.Tensor:
        value = loss(batch.x, batch.y, batch.scale, bias, **batch.teacher(), **call)
        assert isinstance(value, torch.Tensor)
        return value

    return sum(of_step(step).values())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step(name: str) -> None:
    cases = [(pairs, dtype) for pairs in (SMALL, LARGE) for dtype in (torch.bfloat16, torch.float32)]
    found = [launched(name, *case) for case in cases]
    assert all(count <= bound for count, bound in zip(found, BOUNDS[name], strict=True)), found


@pytest.mark.parametrize(("name", "bound"), [("otter", 43), ("info_nce", 23), ("siglip", 18)])
def test_a_step_on_the_losses_of_single_pairs(name: str, bound: int) -> None:
    """What is made of them among it: a weighted sum, 4 launches there and back."""
    batch, weights = make_batch(SMALL, 32).to(torch.bfloat16), torch.rand(SMALL)
    bias = torch.tensor(-3.0, requires_grad=True) if name == "siglip" else None
    loss = VARIANTS[name](backend="triton", reduction="none")

    def step() -> torch.Tensor:
        losses = loss(batch.x, batch.y, batch.scale, bias, **batch.teacher())
        assert isinstance(losses, torch.Tensor)
        return (weights * losses).sum()

    assert sum(of_step(step).values()) <= bound


@pytest.mark.parametrize("name", ["info_nce", "label_smoothing", "distillation", "otter"])
def test_one_alpha_for_each_pair_and_q_cost_no_more(name: str) -> None:
    call: dict[str, Any] = {"q": 0.3}
    if name in ("distillation", "otter"):
        call["alpha"] = torch.linspace(0, 1, SMALL)
    assert launched(name, SMALL, torch.bfloat16, **call) <= BOUNDS[name][0]


@pytest.mark.parametrize(("name", "more"), [("info_nce", 34), ("siglip", 6), ("otter", 40)])
def test_what_groups_cost(name: str, more: int) -> None:
    """Ids, and sums of features over them, in columns of 128."""
    groups = torch.arange(SMALL) // 2
    assert launched(name, SMALL, torch.bfloat16, groups=groups) <= BOUNDS[name][0] + more


def test_features_that_autocast_rounds_cost_that_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert launched("info_nce", SMALL, torch.float32) <= BOUNDS["info_nce"][0] + 2
        assert launched("otter", SMALL, torch.float32) <= BOUNDS["otter"][0] + 4  # the teacher's too


def test_what_is_counted() -> None:
    from otter_losses.ops.triton.features import split

    x = torch.randn(8, 4)
    with counted() as found:
        split(x, x[:2], torch.ones(()), 1, WHOLE_BATCH).x.float().view(-1)[:3].add_(1)
    assert found == {"ones": 1, "split_peaks": 1, "split": 1, "_to_copy": 1, "add_": 1}
