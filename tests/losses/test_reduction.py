"""reduction="none": one loss a pair, of which the loss is the mean, with gradients that are each pair's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import InfoNCELoss, OTTERLoss, grad_cache
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import reference
from tests.helpers.batches import DEVICE, Batch, make_batch, on_device
from tests.helpers.checks import relative
from tests.helpers.losses import MODULES, VARIANTS, memories


def targets_of(name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of rows and of columns, whole."""
    n = len(batch.x)
    given = torch.eye(n, dtype=batch.x.dtype)
    if name == "label_smoothing":
        given = torch.full_like(given, 0.1 / (n - 1)).fill_diagonal_(0.9)
    plans = (given, given)
    if name == "distillation":
        plans = reference.distillation_targets(batch.v, batch.t, float(batch.scale.detach()))
    if name == "otter":
        plans = reference.otter_targets(batch.v, batch.t, 0.15, 5)
    return (given + plans[0]) / 2, (given + plans[1]) / 2


def expected_of(name: str, batch: Batch) -> Tensor:
    """One loss a pair, from whole matrices."""
    logits = batch.scale * batch.x @ batch.y.T
    if name == "siglip":
        return -F.logsigmoid((2 * torch.eye(len(logits), dtype=logits.dtype) - 1) * logits).sum(1)
    p, q = targets_of(name, batch)
    if name == "robust":
        given = [(1 - each.softmax(1).diagonal() ** 0.3) / 0.3 for each in (logits, logits.T)]
        contrastive = (given[0] + given[1]) / 2
        distilled = 2 * expected_of("distillation", batch) - expected_of("info_nce", batch)
        return (contrastive + (1 - 0.3 * contrastive.detach().mean()) * distilled) / 2
    return -((p * logits.log_softmax(1)).sum(1) + (q * logits.T.log_softmax(1)).sum(1)) / 2


DIFFERENTIATED = [name for name in VARIANTS if name != "robust"]
"""RobustLoss holds the weight of its teacher for a constant; its gradients are those of the expected losses below."""


@memories
@pytest.mark.parametrize("name", MODULES)
def test_every_pair_has_its_loss_and_gradient(name: str, max_memory: int) -> None:
    batch, weights = make_batch(23, 6), torch.linspace(-1, 3, 23, dtype=torch.float64)
    call = {**batch.teacher(), "dist_logit_scale": batch.scale}
    losses = MODULES[name](max_memory=max_memory, reduction="none")(batch.x, batch.y, batch.scale, **call)
    expected = expected_of(name, batch)
    assert losses.shape == (23,)
    assert relative(losses, expected) <= 1e-11
    wanted = batch.gradients((weights * expected).sum())
    for actual, exact in zip(batch.gradients((weights * losses).sum()), wanted, strict=True):
        assert relative(actual, exact) <= 1e-10


@memories
@pytest.mark.parametrize("name", VARIANTS)
def test_their_mean_is_the_loss_part_by_part(name: str, max_memory: int) -> None:
    batch = make_batch(23, 6)
    loss = VARIANTS[name](max_memory=max_memory)
    call = {**batch.teacher(), "logit_bias": torch.tensor([0.5], dtype=torch.float64)}
    parts = loss(batch.x, batch.y, batch.scale, **call, output_dict=True)
    apart = loss(batch.x, batch.y, batch.scale, **call, output_dict=True, reduction="none")
    assert list(apart) == list(parts)
    for key, part in parts.items():
        assert apart[key].shape == (23,)
        assert relative(apart[key].mean(), part) <= 1e-14
    losses = loss(batch.x, batch.y, batch.scale, **call, reduction="none")
    assert torch.equal(losses, sum(apart.values()))


@memories
@pytest.mark.parametrize(
    ("name", "second"), [(name, second) for name in DIFFERENTIATED for second in (False, True)[: 1 + name.startswith("otter")]]
)
def test_all_their_gradients_are_those_of_finite_differences(name: str, second: bool, max_memory: int) -> None:
    batch = make_batch(4, 3, scale=2.0)
    bias = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    scales = (batch.scale, torch.tensor(3.0, dtype=torch.float64, requires_grad=True))[: 1 + second]
    loss = VARIANTS[name](max_memory=max_memory, reduction="none")

    def run(x: Tensor, y: Tensor, bias: Tensor, scale: Tensor, *second_scale: Tensor) -> Any:
        more = {"distill_logit_scale": second_scale[0]} if second_scale else {}
        return loss(x, y, scale, bias, **batch.teacher(), dist_logit_scale=2.0, **more)

    assert torch.autograd.gradcheck(run, (batch.x, batch.y, bias, *scales))


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@memories
@pytest.mark.parametrize("name", MODULES)
def test_the_kernels_give_the_same(name: str, max_memory: int) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    batch, weights = on_device(make_batch(41, 24)), torch.linspace(-1, 3, 41, device=DEVICE)
    found = []
    for given, backend in ((batch, "triton"), (batch.to(torch.float64), "torch")):
        losses = MODULES[name](backend=backend, max_memory=max_memory, reduction="none")(given.x, given.y, given.scale)
        found.append((losses, *given.gradients((weights * losses).sum())))
    for actual, exact in zip(*found, strict=True):
        assert relative(actual, exact) <= 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_they_may_be_changed_in_place(name: str) -> None:
    batch = make_batch(9, 6)
    loss = MODULES[name](reduction="none")
    wanted = batch.gradients((3 * loss(batch.x, batch.y, batch.scale)).sum())
    losses = loss(batch.x, batch.y, batch.scale)
    losses.mul_(3)
    for actual, exact in zip(batch.gradients(losses.sum()), wanted, strict=True):
        assert torch.equal(actual, exact)


@pytest.mark.parametrize("name", MODULES)
def test_gradient_of_a_bias_is_one_number(name: str) -> None:
    batch, bias = make_batch(9, 6), torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    MODULES[name](reduction="none")(batch.x, batch.y, batch.scale, bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.shape == (1,)
    assert (float(bias.grad) == 0.0) == (name != "siglip")


@pytest.mark.parametrize("name", MODULES)
def test_they_compile_whole(name: str) -> None:
    batch = make_batch(23, 6, dtype=torch.float32)
    loss = MODULES[name](reduction="none")
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert relative(compiled(batch.x, batch.y, batch.scale), loss(batch.x, batch.y, batch.scale)) <= 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_function_constructor_attribute_and_call_say_it(name: str) -> None:
    batch, row = make_batch(9, 6), LOSSES[name]
    expected = row.module(reduction="none")(batch.x, batch.y, batch.scale)
    told = row.module()
    told.reduction = "none"
    found: tuple[Any, ...] = (
        row.function(batch.x, batch.y, batch.scale, reduction="none"),
        row.module()(batch.x, batch.y, batch.scale, reduction="none"),
        told(batch.x, batch.y, batch.scale),
    )
    for losses in found:
        assert torch.equal(losses, expected)
    mean = row.module(reduction="none")(batch.x, batch.y, batch.scale, reduction="mean")
    assert torch.equal(mean, row.module()(batch.x, batch.y, batch.scale))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", ["sum", "batchmean", None])
def test_other_reductions_are_refused(name: str, bad: Any) -> None:
    batch, row = make_batch(9, 6), LOSSES[name]
    told: Callable[..., Any] = row.module
    calls: list[Callable[[], Any]] = [
        lambda: told(reduction=bad),
        lambda: told()(batch.x, batch.y, batch.scale, reduction=bad),
        lambda: row.function(batch.x, batch.y, batch.scale, reduction=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"reduction is {bad!r}; need 'mean', .* or 'none', one loss a pair"):
            call()


def test_one_pair_has_one_loss() -> None:
    x = torch.eye(1, 3)
    assert InfoNCELoss(reduction="none")(x, x, 10.0).tolist() == [0.0]
    assert OTTERLoss(reduction="none")(x, x, 10.0, alpha=torch.tensor([0.5])).tolist() == [0.0]


def test_grad_cache_takes_weights_by_its_backward() -> None:
    batch, weights = make_batch(8, 6), torch.linspace(0, 1, 8, dtype=torch.float64)
    scale, loss = batch.scale.detach(), OTTERLoss(reduction="none")
    wanted = torch.autograd.grad((weights * loss(2 * batch.x, batch.y, scale)).mean(), batch.x)[0]

    def encode(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return 2 * batch.x[rows], 1 * batch.y[rows], scale

    chunks = [(slice(0, 3),), (slice(3, 8),)]
    losses = grad_cache(encode, chunks, loss, backward=lambda losses: torch.autograd.backward((weights * losses).mean()))
    assert isinstance(losses, Tensor)
    assert losses.shape == (8,)
    assert batch.x.grad is not None
    assert relative(batch.x.grad, wanted) <= 1e-12
