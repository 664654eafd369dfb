"""The core gives four cross entropies of every pair and takes any gradients of them, whatever a loss makes of them."""

import pytest
import torch

from otter_losses.ops import memory
from tests.helpers.batches import DEVICE, Batch, make_batch, on_device
from tests.helpers.checks import worst_error
from tests.helpers.directions import DirectionsLoss, oracle
from tests.helpers.losses import memories


@memories
@pytest.mark.parametrize("n", [2, 41, 300])
def test_every_direction_has_its_own_gradient(n: int, max_memory: int) -> None:
    batch = make_batch(n, 16)
    expected = oracle(batch.x, batch.y, batch.scale, batch.v, batch.t)
    wanted = batch.gradients(expected)
    with memory.limits(cpu_block_elements=1):
        value = DirectionsLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, **batch.teacher())
    assert isinstance(value, torch.Tensor)
    assert worst_error(value, batch.gradients(value), expected, wanted) <= 1e-10


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@memories
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 4e-6), (torch.bfloat16, 2.5e-3)])
def test_so_it_is_in_the_kernels(dtype: torch.dtype, bound: float, max_memory: int) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    half = on_device(make_batch(41, 24), dtype)
    batch = Batch(half.x, half.y, half.scale.detach().float().requires_grad_(), half.v, half.t)
    exact = [each.detach().cpu().double() for each in (batch.x, batch.y, batch.scale, batch.v, batch.t)]
    leaves = tuple(each.requires_grad_() for each in exact[:3])
    expected = oracle(*leaves, *exact[3:])
    wanted = [each.to(DEVICE) for each in torch.autograd.grad(expected, leaves)]
    value = DirectionsLoss(backend="triton", max_memory=max_memory)(batch.x, batch.y, batch.scale, **batch.teacher())
    assert isinstance(value, torch.Tensor)
    assert worst_error(value, batch.gradients(value), expected.to(DEVICE), wanted) <= bound
