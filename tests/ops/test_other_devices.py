"""Where a look at the numbers would stop the device, the losses decide beforehand; here the CPU is made to decide so too."""

from functools import partial

import pytest
import torch
from torch import Tensor

from otter_losses import OTTERLoss
from otter_losses.losses.base import PairLoss
from otter_losses.ops import similarity
from otter_losses.ops.eager import cross_entropy, sinkhorn
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import worst_error
from tests.helpers.losses import VARIANTS, Build, memories

BUILDERS: dict[str, Build] = {
    **{name: build for name, build in VARIANTS.items() if name.startswith(("otter", "info_nce", "distillation"))},
    "otter, gammas": partial(OTTERLoss, gamma_image=0.5, gamma_text=2.0),
    "otter, the last safe epsilon": partial(OTTERLoss, epsilon=0.0751),
    "otter, official, a diagonal that stays": partial(OTTERLoss.official, gamma_image=0.01, gamma_text=0.01),
}
backends = pytest.mark.parametrize("backend", ["torch", "triton"])
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


def evaluate(loss: PairLoss, batch: Batch, own_teacher: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    value = loss(batch.x, batch.y, batch.scale, **({} if own_teacher else batch.teacher()))
    assert isinstance(value, Tensor)
    return value, batch.gradients(value)


@backends
@memories
@pytest.mark.parametrize("own_teacher", [False, True], ids=["given teacher", "own teacher"])
@pytest.mark.parametrize("name", BUILDERS)
def test_decided_beforehand_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, own_teacher: bool, max_memory: int, backend: str
) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
        if torch.cuda.is_available():
            pytest.skip("there the kernels run on the GPU, in test_triton.py")
    batch = make_batch(41, 16)
    expected = evaluate(BUILDERS[name](), batch, own_teacher)
    looked: list[bool] = []

    def blind(tensor: Tensor) -> bool:
        looked.append(True)
        return False

    for module in (similarity, sinkhorn, cross_entropy):
        monkeypatch.setattr(module, "reads_freely", blind)
    single = batch.to(torch.float32)
    found = evaluate(BUILDERS[name](max_memory=max_memory, backend=backend), single, own_teacher)
    assert bool(looked) == (backend == "torch")  # the kernels never look
    assert worst_error(*found, *expected, 14.3) <= (5e-5 if "logarithms" in name else 1e-5)


@memories
@pytest.mark.parametrize("family", FAMILIES)
def test_decided_beforehand_hard_data_are_survived(monkeypatch: pytest.MonkeyPatch, family: str, max_memory: int) -> None:
    batch = make_batch(41, 16, family=family)
    for epsilon in (0.15, 0.0751, 0.001):
        expected = evaluate(OTTERLoss(epsilon=epsilon), batch, False)
        with monkeypatch.context() as patch:
            for module in (similarity, sinkhorn, cross_entropy):
                patch.setattr(module, "reads_freely", lambda tensor: False)
            found = evaluate(OTTERLoss(epsilon=epsilon, max_memory=max_memory), batch.to(torch.float32), False)
        assert worst_error(*found, *expected, 14.3) <= 4e-6 + 4e-7 / epsilon


@memories
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decided_beforehand_a_teacher_far_from_normalised_gives_no_number(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, max_memory: int
) -> None:
    """Rather than a wrong one; looked at, it is taken as it is."""
    batch, norms = make_batch(41, 16, dtype=dtype), (1.01, 6.0)
    epsilon = 0.08 if dtype == torch.float32 else 0.01
    loss = OTTERLoss(epsilon=epsilon, max_memory=max_memory)
    exact = [loss(batch.x, batch.y, 14.3, None, norm * batch.v, norm * batch.t) for norm in norms]
    for module in (similarity, sinkhorn, cross_entropy):
        monkeypatch.setattr(module, "reads_freely", lambda tensor: False)
    nearly, far = (loss(batch.x, batch.y, 14.3, None, norm * batch.v, norm * batch.t) for norm in norms)
    assert float(nearly) == pytest.approx(float(exact[0]), rel=1e-5)
    assert bool(far.isnan())
    assert bool(exact[1].isfinite())
