"""q=: the generalised cross entropy ``(1 - p^q) / q`` of the given pairs, per direction (Zhang and Sabuncu 2018)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss
from otter_losses.losses.base import PairLoss
from otter_losses.ops import reference
from tests.helpers.batches import Batch, make_batch, on_device
from tests.helpers.checks import relative, worst_error
from tests.helpers.losses import memories

SOFTMAX: dict[str, Callable[..., PairLoss]] = {
    "info_nce": InfoNCELoss,
    "label_smoothing": LabelSmoothingLoss,
    "distillation": DistillationLoss,
    "otter": OTTERLoss,
}


def expected(name: str, batch: Batch, q: float, alpha: Tensor) -> Tensor:
    """The mean, from probabilities."""
    z, n = batch.scale * batch.x @ batch.y.T, len(batch.x)
    p, p_column = z.softmax(1), z.T.softmax(1)
    if name == "label_smoothing":  # p of smoothed targets is its geometric mean under them
        targets = torch.full_like(z, 0.1 / (n - 1)).fill_diagonal_(0.9)
        own = [torch.exp((targets * each.log()).sum(1)) for each in (p, p_column)]
    else:
        own = [each.diagonal() for each in (p, p_column)]
    row, column = ((1 - each**q) / q for each in own)
    given: Tensor = (row + column) / 2
    if name in ("info_nce", "label_smoothing"):
        return given.mean()
    targets_of = {
        "distillation": lambda: reference.distillation_targets(batch.v, batch.t, float(batch.scale.detach())),
        "otter": lambda: reference.otter_targets(batch.v, batch.t),
    }
    rows, columns = targets_of[name]()
    soft = -((rows * p.log()).sum(1) + (columns * p_column.log()).sum(1)) / 2
    return (alpha * given + (1 - alpha) * soft).mean()


def call_of(name: str, batch: Batch, alpha: Tensor) -> dict[str, Any]:
    if name in ("info_nce", "label_smoothing"):
        return {}
    return {**batch.teacher(), "alpha": alpha, **({"dist_logit_scale": batch.scale.detach()} if name == "distillation" else {})}


def check(name: str, batch: Batch, q: float, limit: float, **options: Any) -> None:
    exact = Batch(*(each.detach().cpu().double() for each in (batch.x, batch.y, batch.scale, batch.v, batch.t)))
    exact = exact.to(torch.float64)
    alpha = torch.linspace(0, 1, len(batch.x), dtype=torch.float64)
    value = SOFTMAX[name](q=q, **options)(
        batch.x, batch.y, batch.scale, **call_of(name, batch, alpha.to(batch.x.device, batch.scale.dtype))
    )
    wanted = expected(name, exact, q, alpha)
    found = [each.cpu() for each in batch.gradients(value)]
    assert worst_error(value.cpu(), found, wanted, exact.gradients(wanted)) <= limit


@memories
@pytest.mark.parametrize("q", [0.01, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", SOFTMAX)
def test_every_softmax_loss_takes_it(name: str, q: float, max_memory: int) -> None:
    check(name, make_batch(23, 6), q, 1e-10, max_memory=max_memory)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@memories
@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_kernels_take_it(name: str, dtype: torch.dtype, limit: float, max_memory: int) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    check(name, on_device(make_batch(41, 24)).to(dtype), 0.3, limit, backend="triton", max_memory=max_memory)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize("q", [1e-4, 0.3])
@pytest.mark.parametrize("scale", [100.0, 0.5])
def test_kernels_lose_no_digits_of_sure_or_hopeless_pairs(q: float, scale: float) -> None:
    """Of p near 1 and of p that underflows."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    batch = make_batch(33, 48, scale=scale, family="permutation", dtype=torch.float32)
    check("info_nce", on_device(batch), q, 3e-5, backend="triton")
    sure = on_device(Batch(batch.x, batch.x.detach().clone().requires_grad_(), batch.scale, batch.v, batch.t))
    check("info_nce", sure, q, 3e-5, backend="triton")


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize("name", SOFTMAX)
def test_none_is_the_cross_entropy_to_the_bit(name: str, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
    batch = on_device(make_batch(23, 24))
    values = [
        loss(batch.x, batch.y, batch.scale, **batch.teacher())
        for loss in (SOFTMAX[name](backend=backend), SOFTMAX[name](backend=backend, q=0.0))
    ]
    assert torch.equal(values[0], values[1])
    for one, other in zip(*(batch.gradients(value) for value in values), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_small_q_is_near_it(name: str) -> None:
    batch = make_batch(23, 6)
    values = [SOFTMAX[name](q=q)(batch.x, batch.y, batch.scale) for q in (0.0, 1e-9)]
    assert relative(values[1], values[0]) <= 1e-8


def test_hopeless_pairs_pull_less() -> None:
    """The gradient of each pair is that of its cross entropy times ``p^q``."""
    batch = make_batch(12, 6)
    losses = [InfoNCELoss(q=q, reduction="none")(batch.x, batch.y, batch.scale) for q in (0.0, 0.5)]
    z = batch.scale * batch.x @ batch.y.T
    for pair in range(12):
        entropies = -z.log_softmax(1)[pair, pair], -z.log_softmax(0)[pair, pair]
        row, column = (torch.exp(-0.5 * each).detach() * each for each in entropies)
        wanted = (row + column) / 2
        found = torch.autograd.grad(losses[1][pair], batch.x, retain_graph=True)[0]
        assert relative(found, torch.autograd.grad(wanted, batch.x, retain_graph=True)[0]) <= 1e-10


def test_the_parts_say_which_is_generalised() -> None:
    batch = make_batch(12, 6)
    plain, robust = (OTTERLoss(q=q)(batch.x, batch.y, batch.scale, output_dict=True) for q in (0.0, 0.3))
    assert torch.equal(plain["distill_loss"], robust["distill_loss"])
    assert bool(robust["contrastive_loss"] < 0.7 * plain["contrastive_loss"])


def test_two_scales_and_all_belief_take_it_too() -> None:
    batch = make_batch(12, 6)
    z = batch.scale.detach() * batch.x @ batch.y.T
    given = ((1 - z.softmax(1).diagonal() ** 0.3) + (1 - z.softmax(0).diagonal() ** 0.3)).mean() / 0.6
    for call in ({"alpha": 1.0}, {"alpha": 1.0, "distill_logit_scale": 5.0}, {"alpha": 0.25, "distill_logit_scale": 5.0}):
        parts = OTTERLoss(q=0.3)(batch.x, batch.y, batch.scale, **call, output_dict=True)
        assert relative(parts["contrastive_loss"], call["alpha"] * given) <= 1e-12


def test_an_annealed_q_compiles_a_few_times() -> None:
    torch.compiler.reset()
    batch, loss = make_batch(9, 8, dtype=torch.float32), InfoNCELoss(q=0.7)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(8):
        loss.q = 0.7 - 0.05 * step
        values = [each(batch.x, batch.y, 14.3) for each in (compiled, loss)]
        assert relative(values[0], values[1]) <= 1e-6
        gradients = [torch.autograd.grad(each, batch.x)[0] for each in values]
        assert relative(gradients[0], gradients[1]) <= 1e-5
    assert counter.frame_count <= 3


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        (-0.1, ValueError, "q is -0.1; need a finite number of at least 0 and at most 1"),
        (1.5, ValueError, "q is 1.5; need a finite number of at least 0 and at most 1"),
        (float("nan"), ValueError, "q is nan"),
        ("0.3", TypeError, "q is a str; need a number"),
    ],
)
def test_a_bad_q_is_refused(name: str, q: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SOFTMAX[name](q=q)
    with pytest.raises(error, match=message):
        SOFTMAX[name]()(torch.eye(4), torch.eye(4), 1.0, q=q)


def test_the_released_arithmetic_has_none() -> None:
    with pytest.raises(ValueError, match=r"q is 0.3 and the loss official\(\); .* Use OTTERLoss\(\)"):
        OTTERLoss.official(q=0.3)
    with pytest.raises(ValueError, match=r"q is 0.3 and the loss official\(\)"):
        OTTERLoss.official()(torch.eye(4), torch.eye(4), 1.0, q=0.3)
