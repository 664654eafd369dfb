"""Where there are no numbers to look at, shapes and dtypes come out: what memory estimators and tracers ask for."""

from typing import Any

import pytest
import torch
from functorch.compile import aot_function, nop  # type: ignore[import-untyped]
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from otter_losses import set_debug, sinkhorn_knopp
from otter_losses.functional import otter_targets
from tests.helpers.losses import VARIANTS


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_loss(name: str, dtype: torch.dtype, debug: bool) -> None:
    set_debug(debug)
    with FakeTensorMode():
        x, y = (torch.randn(12, 16, dtype=dtype, requires_grad=True) for _ in range(2))
        scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
        v, t = torch.randn(2, 12, 24).unbind()
        call: dict[str, Any] = {"dist_image_features": v, "dist_text_features": t}
        if name.startswith("otter"):
            call |= {"alpha": torch.rand(12), "distill_logit_scale": torch.tensor(20.0)}
        value = VARIANTS[name]()(x, y, scale, bias, **call)
        assert (value.shape, value.dtype) == ((), torch.float32)
        value.backward()
    for leaf in (x, y, scale, bias):
        assert leaf.grad is not None
        assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_loss_under_autocast(name: str) -> None:
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = (torch.randn(12, 16, requires_grad=True) for _ in range(2))
        VARIANTS[name]()(x, y, 14.3).backward()
    assert x.grad is not None
    assert (x.grad.shape, x.grad.dtype) == (x.shape, torch.float32)


def test_transport_and_targets() -> None:
    with FakeTensorMode():
        scores = torch.randn(3, 4, 5, requires_grad=True)
        marginal = torch.rand(4)
        result = sinkhorn_knopp(scores, tolerance=1e-3, row_marginal=marginal / marginal.sum(), return_result=True)
        assert [each.shape for each in result[:4]] == [(3, 4, 5), (3, 4), (3, 5), (3,)]
        result.plan.sum().backward()  # type: ignore[no-untyped-call]
        plans = otter_targets(*torch.randn(2, 7, 8).unbind())
        assert [plan.shape for plan in plans] == [(7, 7), (7, 7)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_loss_on_the_meta_device(name: str) -> None:
    x, y = (torch.empty(12, 16, device="meta", requires_grad=True) for _ in range(2))
    value = VARIANTS[name]()(x, y, torch.empty((), device="meta"))
    value.backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


class Devices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Where the tensors are that our operators are given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "otter_losses":
            self.found |= {each.device.type for each in args if isinstance(each, Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_on_the_cpu_join_the_features(name: str, backend: str) -> None:
    """A kernel reads memory of its device alone."""
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
        if torch.cuda.is_available():
            pytest.skip("there Triton compiles, and kernels are for its own device")
    x, y = (torch.empty(12, 16, device="meta", requires_grad=True) for _ in range(2))
    number: dict[str, Any] = {"alpha": torch.tensor(0.25, dtype=torch.float64)} if name.startswith(("otter", "dist")) else {}
    with Devices() as devices:
        VARIANTS[name](backend=backend)(x, y, torch.tensor(14.3), torch.tensor(-3.0), **number)
    assert devices.found == {"meta"}


def test_transport_and_targets_on_the_meta_device() -> None:
    assert sinkhorn_knopp(torch.empty(4, 5, device="meta")).shape == (4, 5)
    plans = otter_targets(*torch.empty(2, 7, 8, device="meta").unbind())
    assert [plan.shape for plan in plans] == [(7, 7), (7, 7)]


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_traced_with_numbers_in_sight(name: str) -> None:
    """By make_fx and AOTAutograd, which record whatever looks at them."""
    x, y = (torch.nn.functional.normalize(torch.randn(9, 8), dim=1).requires_grad_() for _ in range(2))
    loss = VARIANTS[name]()

    def step(x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = loss(x, y, 14.3)
        return value

    expected = step(x, y)
    wanted = torch.autograd.grad(expected, (x, y))
    compiled: Any = aot_function(step, nop)
    value = compiled(x, y)
    assert torch.equal(value, expected)
    assert all(torch.equal(*pair) for pair in zip(torch.autograd.grad(value, (x, y)), wanted, strict=True))
    assert torch.equal(make_fx(step)(x.detach(), y.detach())(x, y), expected)


def test_transport_is_traced_with_numbers_in_sight() -> None:
    scores = torch.randn(6, 5)
    traced = make_fx(lambda scores: sinkhorn_knopp(scores))(scores)
    assert torch.allclose(traced(scores), sinkhorn_knopp(scores), rtol=1e-5, atol=0)
