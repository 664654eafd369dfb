"""groups=: pairs of one id are each other's positives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import DistillationLoss, InfoNCELoss, OTTERLoss
from otter_losses.functional import otter_targets
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import groups as groups_of_ops
from otter_losses.ops import memory, similarity
from otter_losses.ops.eager import cross_entropy, sinkhorn
from tests.helpers.batches import DEVICE, Batch, make_batch, on_device
from tests.helpers.checks import relative, worst_error
from tests.helpers.groups import KINDS, grouped_losses, make_groups, matches
from tests.helpers.losses import MODULES, VARIANTS, memories

GROUPED = [name for name in VARIANTS if "official" not in name]


def call_of(name: str, batch: Batch) -> dict[str, Any]:
    return {**batch.teacher(), **({"dist_logit_scale": batch.scale.detach()} if name in ("distillation", "robust") else {})}


def check(name: str, batch: Batch, groups: Tensor, q: float, limit: float, **options: Any) -> None:
    """Values and gradients, of pairs weighted apart and of their mean, against whole matrices in float64."""
    if name != "siglip":
        options["q"] = q
    exact = Batch(*(each.detach().cpu().double() for each in (batch.x, batch.y, batch.scale, batch.v, batch.t)))
    exact = exact.to(torch.float64)
    bias, exact_bias = (torch.tensor(-3.0, dtype=each.scale.dtype, device=each.x.device) for each in (batch, exact))
    weights = torch.linspace(0.2, 1, len(groups), dtype=torch.float64)
    expected = grouped_losses(name, exact, exact_bias, groups.cpu(), q)
    for reduction, wanted in (("mean", expected.mean()), ("none", (weights * expected).sum())):
        loss = MODULES[name](reduction=reduction, **options)
        value = loss(batch.x, batch.y, batch.scale, bias, **call_of(name, batch), groups=groups)
        if reduction == "none":
            assert relative(value.cpu(), expected) <= limit
            value = (weights.to(value) * value).sum()
        found = [each.cpu() for each in batch.gradients(value)]
        kept = (
            exact.gradients(wanted)
            if reduction == "none"
            else torch.autograd.grad(wanted, (exact.x, exact.y, exact.scale), retain_graph=True)
        )
        assert worst_error(value.cpu(), found, wanted, kept) <= limit


@memories
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("n", [2, 23])
def test_every_loss_is_that_of_its_targets(name: str, kind: str, n: int, max_memory: int) -> None:
    with memory.limits(cpu_block_elements=1, cpu_block_rows=7):
        for q in (0.0, 0.3)[: 1 + (name != "siglip")]:
            check(name, make_batch(n, 6), make_groups(kind, n), q, 1e-10, max_memory=max_memory)


@memories
@pytest.mark.parametrize("name", MODULES)
def test_so_it_is_where_nobody_may_look(monkeypatch: pytest.MonkeyPatch, name: str, max_memory: int) -> None:
    """As on a device: entries are told by masks."""
    for module in (groups_of_ops, similarity, sinkhorn, cross_entropy):
        monkeypatch.setattr(module, "reads_freely", lambda tensor: False)
    check(name, make_batch(23, 6), make_groups("some", 23), 0.0, 1e-10, max_memory=max_memory)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@memories
@pytest.mark.parametrize("kind", ["some", "most"])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_so_are_the_kernels(name: str, kind: str, dtype: torch.dtype, limit: float, max_memory: int) -> None:
    """Gradients in bfloat16 are rounded to it."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    batch, groups = on_device(make_batch(41, 24)).to(dtype), make_groups(kind, 41).to(DEVICE)
    blocks = {"device_pass_elements": 1, "device_gradient_elements": 1, "device_gradient_rows": 16, "cpu_block_elements": 1}
    with memory.limits(**blocks, cpu_block_rows=16, codes_from=0):
        check(name, batch, groups, 0.3, limit, backend="triton", max_memory=max_memory)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize("name", GROUPED)
def test_a_group_for_each_pair_changes_nothing(name: str, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
    batch = make_batch(19, 24, dtype=torch.float32)
    loss = VARIANTS[name](backend=backend)
    values = [loss(batch.x, batch.y, batch.scale, **batch.teacher(), groups=each) for each in (None, 7 - torch.arange(19))]
    gradients = [batch.gradients(value) for value in values]
    assert worst_error(values[1], gradients[1], values[0], gradients[0]) <= 2e-6


def test_names_do_not_matter() -> None:
    batch, names = make_batch(12, 6), torch.tensor([5, 5, 3, 2, 2, 2, 9, 8, 7, 1, 0, 5])
    renamed = torch.tensor([-1, 2**62, 0, 4, -9, 7, 100, 3, 2, 1], dtype=torch.int64)[names]
    strided = names.repeat_interleave(2)[::2]
    values = [
        OTTERLoss(gamma_text=0.5)(batch.x, batch.y, batch.scale, groups=each)
        for each in (names, renamed, names.int(), names.to(torch.uint8), strided)
    ]
    assert all(torch.equal(values[0], value) for value in values[1:])


def test_duplicates_in_a_group_are_no_negatives() -> None:
    """A batch of pairs twice is, in groups, the batch once, but for the constant log 2 of the two positives."""
    batch = make_batch(9, 6)
    twice = [each.repeat(2, 1) for each in (batch.x, batch.y)]
    once = InfoNCELoss()(batch.x, batch.y, batch.scale)
    grouped = InfoNCELoss()(*twice, batch.scale, groups=torch.arange(9).repeat(2))
    assert relative(grouped - torch.log(torch.tensor(2.0)), once) <= 1e-7
    for actual, wanted in zip(batch.gradients(grouped), batch.gradients(once), strict=True):
        assert relative(actual, wanted) <= 1e-12


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize("epsilon", [0.15, 0.01])
def test_no_mass_moves_within_a_group(backend: str, epsilon: float) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
    batch, groups = make_batch(15, 8), make_groups("some", 15)
    v, t = (each.to(DEVICE, torch.float32 if backend == "triton" else torch.float64) for each in (batch.v, batch.t))
    same = groups[:, None] == groups
    plans = otter_targets(v, t, groups=groups.to(DEVICE), epsilon=epsilon, backend=backend)
    for plan, wanted in zip(plans, matches(batch.v, batch.t, same, epsilon), strict=True):
        assert float(plan.cpu()[same].abs().max()) == 0.0
        assert relative(plan.cpu(), wanted) <= (1e-10 if backend == "torch" else 2e-5)


@pytest.mark.parametrize("kind", ["two halves", "most", "all"])
@pytest.mark.parametrize("iterations", [5, 500])
def test_large_groups_leave_a_plan(kind: str, iterations: int) -> None:
    """A group of more than half of the batch has no match outside for all of its pairs: it is matched within."""
    batch = make_batch(16, 8)
    for plan in otter_targets(batch.v, batch.t, groups=make_groups(kind, 16), iterations=iterations):
        assert torch.allclose(plan.sum(1), torch.ones(16, dtype=torch.float64), rtol=1e-9)
        assert float(plan.diagonal().abs().max()) == 0.0


def test_distillation_without_the_given_pair_is_without_its_group() -> None:
    batch, groups = make_batch(15, 6), make_groups("some", 15)
    same = groups[:, None] == groups
    z = batch.scale * batch.x @ batch.y.T
    expected = torch.zeros((), dtype=torch.float64)
    for logits, scores in ((z, batch.v @ batch.t.T), (z.T, batch.t @ batch.v.T)):
        targets = (scores / 0.2).masked_fill(same, -torch.inf).softmax(1)
        given = same.double() / same.sum(1, keepdim=True)
        expected = expected - ((0.5 * given + 0.5 * targets) * logits.log_softmax(1)).sum(1).mean() / 2
    loss = DistillationLoss(epsilon=0.2, remove_diagonal=True)
    assert relative(loss(batch.x, batch.y, batch.scale, **batch.teacher(), groups=groups), expected) <= 1e-12


@pytest.mark.parametrize("name", MODULES)
def test_groups_compile_whole(name: str) -> None:
    torch.compiler.reset()
    batch, groups = make_batch(23, 8, dtype=torch.float32), make_groups("some", 23)

    loss = MODULES[name]()

    def run() -> Tensor:
        value = loss(2 * batch.x / 2, batch.y, 1.0 * batch.scale, **batch.teacher(), groups=groups)
        assert isinstance(value, Tensor)
        return value

    values = [torch.compile(run, fullgraph=True, backend="aot_eager")(), run()]
    gradients = [batch.gradients(value) for value in values]
    assert worst_error(values[0], gradients[0], values[1], gradients[1]) <= 1e-6


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1, 2, 3, 4], TypeError, "groups is a list; need a torch.Tensor of integers"),
        (torch.ones(4), TypeError, "groups has dtype torch.float32; need integers"),
        (torch.ones(4, dtype=torch.bool), TypeError, "groups has dtype torch.bool; need integers"),
        (torch.ones(3, dtype=torch.int64), ValueError, r"groups has shape \(3,\); need \(4,\), one id a pair"),
        (torch.ones(4, 1, dtype=torch.int64), ValueError, r"groups has shape \(4, 1\); need \(4,\)"),
        (torch.ones(4, dtype=torch.int64, device="meta"), ValueError, "groups is on meta and image_features on cpu"),
    ],
)
def test_bad_groups_are_refused(name: str, groups: Any, error: type[Exception], message: str) -> None:
    x = torch.eye(4)
    with pytest.raises(error, match=message):
        MODULES[name]()(x, x, 1.0, groups=groups)
    with pytest.raises(error, match=message):
        LOSSES[name].function(x, x, 1.0, groups=groups)


def test_the_released_arithmetic_has_no_groups() -> None:
    x = torch.eye(4)
    with pytest.raises(ValueError, match=r"groups were given and the loss official\(\); .* Use OTTERLoss\(\)"):
        OTTERLoss.official()(x, x, 1.0, groups=torch.arange(4))


def test_a_loss_is_not_built_with_groups() -> None:
    build: Callable[..., PairLoss] = InfoNCELoss
    with pytest.raises(
        TypeError, match=r"^groups is no argument of InfoNCELoss; need it in the call: loss\(\.\.\., groups=groups\)\.$"
    ):
        build(groups=torch.arange(4))
