"""Eager torch elsewhere than on the CPU: half-precision products, nothing from the host, few walks over the N x N matrices.

The CPU is made to decide as a GPU does, and to multiply half-precision operands into float32; tensors without data stand for
those of a device, and what is done with them is counted.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from otter_losses import OTTERLoss
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import memory, products, similarity
from otter_losses.ops.eager import cross_entropy, sigmoid, sinkhorn
from otter_losses.ops.memory import Storage
from otter_losses.ops.problem import SigmoidProblem, Student
from otter_losses.ops.targets import HardTargets
from tests.helpers.batches import make_batch, make_features
from tests.helpers.checks import check_equal, relative
from tests.helpers.losses import VARIANTS, memories
from tests.helpers.problems import forward_and_backward, make_problem, transported


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The CPU decides and multiplies as a GPU does; the dtypes it is given to multiply."""
    multiplied: list[torch.dtype] = []
    mm, addmm = torch.mm, torch.addmm

    def widened(a: Tensor, b: Tensor, out_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        multiplied.append(a.dtype)
        assert a.dtype == b.dtype
        return (a, b) if out_dtype is None else (a.to(out_dtype), b.to(out_dtype))

    def into(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        return mm(*widened(a, b, out_dtype), out=out)

    def added(total: Tensor, a: Tensor, b: Tensor, beta: int, out: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return addmm(total, *widened(a, b, out_dtype), beta=beta, out=out)

    monkeypatch.setattr(torch, "mm", into)
    monkeypatch.setattr(torch, "addmm", added)
    monkeypatch.setattr(products, "_sums_in_float32", lambda device, dtype: (dtype in products.HALVES,) * 2)
    for module in (similarity, sinkhorn, cross_entropy):
        monkeypatch.setattr(module, "reads_freely", lambda tensor: False)
    return multiplied


@memories
@pytest.mark.parametrize("family", ["random", "clustered", "duplicated", "outlier"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_loses_nothing(
    device: list[torch.dtype], name: str, dtype: torch.dtype, family: str, max_memory: int
) -> None:
    """Against float64 on the same rounded numbers, before the gradient is rounded: under autocast it is not."""
    half = make_batch(72, 32, family=family).to(dtype)
    exact, single = half.to(torch.float64), half.to(torch.float32)
    loss = VARIANTS[name](max_memory=max_memory)
    with torch.autocast("cpu", dtype), memory.limits(cpu_block_elements=1, cpu_block_rows=40):
        value = loss(single.x, single.y, single.scale, -3.0, **single.teacher())
        gradients = single.gradients(value)
    assert dtype in device
    expected = VARIANTS[name]()(exact.x, exact.y, exact.scale, -3.0, **exact.teacher())
    assert relative(value, expected, floor=1.0) <= 1e-5
    dx, dy, dscale = exact.gradients(expected)
    assert relative(gradients[0], dx) <= 1e-4
    assert relative(gradients[1], dy) <= 1e-4
    assert relative(gradients[2], dscale, floor=0.1) <= 1e-4


@memories
@pytest.mark.parametrize("gammas", [(0.0, 1.0), (1.0, 0.0), (0.3, 2.0)])
def test_weights_within_a_modality_are_not_rounded(
    device: list[torch.dtype], gammas: tuple[float, float], max_memory: int
) -> None:
    half = make_batch(41, 16).to(torch.bfloat16)
    exact = half.to(torch.float64)
    options: dict[str, Any] = {"alpha": 0.0, "gamma_image": gammas[0], "gamma_text": gammas[1]}
    value = OTTERLoss(max_memory=max_memory, **options)(half.x, half.y, 14.3, **half.teacher())
    assert set(device) == {torch.bfloat16}
    expected = OTTERLoss(**options)(exact.x, exact.y, 14.3, **exact.teacher())
    assert relative(value, expected) <= 1e-5


@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_a_scaled_loss_stays_within_float16(device: list[torch.dtype], name: str) -> None:
    """As GradScaler scales it."""
    half = make_batch(41, 16).to(torch.float16)
    single = half.to(torch.float32)
    with torch.autocast("cpu", torch.float16):
        value = VARIANTS[name]()(single.x, single.y, single.scale, -3.0, **single.teacher())
    wanted = single.gradients(value)
    with torch.autocast("cpu", torch.float16):
        again = VARIANTS[name]()(single.x, single.y, single.scale, -3.0, **single.teacher())
    check_equal([each * 2.0**-20 for each in single.gradients(2.0**20 * again)], wanted)


def test_a_matrix_in_two_parts() -> None:
    values = make_features("random", 50, 40, dtype=torch.float32)[0]
    for dtype, bound in ((torch.bfloat16, 2.0**-17), (torch.float16, 2.0**-22)):
        high, low = products.parts(values, dtype)
        assert high.dtype == low.dtype == dtype
        error = (high.double() + low.double() - values.double()).abs()
        assert bool((error <= bound * values.abs() + 2.0**-25).all())


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is done with tensors of a device that stand without data: what touches the host, and walks over N x N matrices.

    A walk is N x N float32 numbers read or written, half as much of half precision.
    """

    def __init__(self, pairs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pairs, self.walks, self.host = pairs, 0.0, set[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found: Any = function(*args, **kwargs)
        name = function._schema.name
        read = [leaf for leaf in tree_leaves((args, {**kwargs, "out": None})) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if name.endswith("_local_scalar_dense") or any(leaf.device.type == "cpu" for leaf in read + written):
            self.host.add(name)
        if not function.is_view and "empty" not in name:
            times = {"aten::_log_softmax": 3, "aten::logsumexp": 6}.get(name, 1)  # read as often
            self.walks += times * sum(map(self.size, read)) + sum(map(self.size, written))
        return found

    def size(self, tensor: Tensor) -> float:
        """In walks; nothing of what is no wider than features."""
        stored = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        return stored * tensor.element_size() / 4 / self.pairs**2 if stored > self.pairs**2 / 4 else 0.0


def test_the_watch_sees() -> None:
    watch = Watch(8)
    with watch:
        matrix = torch.empty(8, 8, device="meta")
        matrix.mul_(2.0)
        half = matrix.to(torch.bfloat16)
        (matrix @ half.float()).sum(1)
    assert watch.walks == 2 + 1.5 + 1.5 + 3 + 1
    assert not watch.host
    watch = Watch(8)
    with watch:
        matrix.add_(torch.ones(()))
        torch.ones(4).to("meta")
    assert watch.host == {"aten::ones", "aten::add_", "aten::_to_copy"}


def grouped(pairs: int = 512) -> HardTargets:
    ids, shares = (torch.empty(pairs, dtype=dtype, device="meta") for dtype in (torch.int32, torch.float32))
    return HardTargets(shares, shares, ids)


def watched(soft: str | None, keeps: bool, dtype: torch.dtype, hard: HardTargets, pairs: int = 512) -> Watch:
    """A forward and backward of the softmax losses' operator, whole or block by block."""
    x, y, v, t = (torch.empty(pairs, 16, dtype=dtype, device="meta") for _ in range(4))
    inv_epsilon, scale = (torch.empty((), device="meta") for _ in range(2))
    targets = None
    if soft is not None:
        targets = transported(v, t, inv_epsilon, logit_range=40.0 if soft == "plain numbers" else math.inf)
        targets = replace(targets, groups=hard.groups)
    storage = Storage(torch.float32 if keeps and soft else None, keeps)
    problem = make_problem(x, y, scale, storage, targets, hard=hard)
    watch = Watch(pairs)
    with memory.limits(device_eager_elements=pairs**2 // 2, device_block_rows=1), watch:
        forward_and_backward(cross_entropy, problem)
    return watch


@pytest.fixture
def half_products(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.ops.aten.mm, "dtype"):
        pytest.skip("this torch multiplies half precision into half precision only")
    monkeypatch.setattr(products, "_sums_in_float32", lambda device, dtype: (dtype in products.HALVES,) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("soft", [None, "plain numbers", "logarithms"])
def test_no_step_touches_the_host(half_products: None, soft: str | None, keeps: bool, dtype: torch.dtype) -> None:
    """The condition for CUDA graphs."""
    for hard in (HardTargets(0.9, 0.1), grouped()):
        assert not watched(soft, keeps, dtype, hard).host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps", [True, False])
def test_no_step_of_the_sigmoid_loss_touches_the_host(half_products: None, keeps: bool, dtype: torch.dtype) -> None:
    x, y = (torch.empty(512, 16, dtype=dtype, device="meta") for _ in range(2))
    scale = bias = torch.empty((), device="meta")
    for groups in (grouped().groups, None):
        problem = SigmoidProblem(Student(x, y, y, scale), bias, slice(0, 512), keeps, groups)
        watch = Watch(512)
        with watch:
            losses, kept = sigmoid.forward(problem)
            sigmoid.backward(problem, losses, kept, True, True, WHOLE_BATCH)
        assert not watch.host
    assert watch.walks <= (13.0 if dtype == torch.float32 else 16.5) + (0 if keeps else 3)


@pytest.mark.parametrize(
    ("soft", "keeps", "most"),
    [(None, True, 29.5), (None, False, 32.5), ("plain numbers", True, 56.5), ("plain numbers", False, 80.5)],
)
def test_walks_over_the_matrices(half_products: None, soft: str | None, keeps: bool, most: float) -> None:
    """Of bfloat16; eager ClipLoss takes as long on an H100 as 22 walks do at the speed of a copy."""
    assert 0.9 * most < watched(soft, keeps, torch.bfloat16, HardTargets()).walks <= most
