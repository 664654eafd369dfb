"""What only a GPU can show; skipped without one. The numbers themselves are checked elsewhere, there too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses.losses.base import PairLoss
from otter_losses.ops import dispatch
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import worst_error
from tests.helpers.losses import VARIANTS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

names = pytest.mark.parametrize("name", ["otter", "otter, logarithms", "info_nce", "siglip"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def batch_of(pairs: int, dtype: torch.dtype) -> Batch:
    batch = make_batch(pairs, 64).to(dtype)
    leaves = (
        each.detach().cuda().requires_grad_(each.requires_grad) for each in (batch.x, batch.y, batch.scale, batch.v, batch.t)
    )
    return Batch(*leaves)


def step(loss: PairLoss | Callable[..., Any], batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher())
    assert isinstance(value, Tensor)
    return value, batch.gradients(value)


@names
@dtypes
@pytest.mark.parametrize("pairs", [65, 512, 2600])
def test_auto_takes_the_kernels_and_agrees_with_torch(name: str, dtype: torch.dtype, pairs: int) -> None:
    batch = batch_of(pairs, dtype)
    assert dispatch.resolve("auto", batch.x, pairs) == "auto"
    tolerance = 5e-3 if dtype == torch.bfloat16 else 2e-4 if "logarithms" in name else 2e-5
    assert worst_error(*step(VARIANTS[name](), batch), *step(VARIANTS[name](backend="torch"), batch)) <= tolerance


@names
@dtypes
def test_a_step_in_a_cuda_graph(name: str, dtype: torch.dtype) -> None:
    batch, loss = batch_of(512, dtype), VARIANTS[name]()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(loss, batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradients = step(loss, batch)
    for seed in range(2):
        other = make_batch(512, 64, seed=seed + 5)
        with torch.no_grad():
            batch.x.copy_(other.x)
            batch.y.copy_(other.y)
        graph.replay()
        expected, wanted = step(loss, batch)
        assert torch.equal(value, expected)
        assert all(torch.equal(one, same) for one, same in zip(gradients, wanted, strict=True))


@names
@dtypes
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(name: str, dtype: torch.dtype, mode: str) -> None:
    torch.compiler.reset()
    batch, loss = batch_of(512, dtype), VARIANTS[name]()
    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for _ in range(3):
        value, gradients = step(compiled, batch)
    # A compiled loss takes its mean itself: bfloat16 may round the other way.
    assert worst_error(value, gradients, *step(loss, batch)) <= (5e-3 if dtype == torch.bfloat16 else 1e-5)


@names
@dtypes
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_waits_for_the_device(name: str, dtype: torch.dtype) -> None:
    batch, loss = batch_of(512, dtype), VARIANTS[name]()
    step(loss, batch)
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(loss, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
