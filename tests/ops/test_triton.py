"""The Triton kernels give what plain torch gives: on a GPU where there is one, else in Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otter_losses import InfoNCELoss, OTTERLoss, SigLIPLoss, checks
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import dispatch, memory
from otter_losses.ops.execution import Execution
from tests.helpers.batches import DEVICE, Batch, make_batch, on_device
from tests.helpers.checks import check_equal, relative, worst_error
from tests.helpers.losses import BLOCKS, DENSE, VARIANTS, memories
from tests.helpers.problems import transported

pytest.importorskip("triton", reason="triton is there on Linux only")
# The interpreter computes lanes beyond the matrix's edge too, and numpy tells of it.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]


def error(name: str, batch: Batch, own_teacher: bool = False, **options: Any) -> float:
    """Of value and gradients, features, scale and bias, against float64 in plain torch on the same numbers."""
    single = on_device(batch)
    results = []
    for given, backend in ((single, "triton"), (single.to(torch.float64), "torch")):
        bias = torch.tensor(-3.0, dtype=given.x.dtype, device=DEVICE, requires_grad=True)
        teacher = {} if own_teacher else given.teacher()
        value = VARIANTS[name](backend=backend, **options)(given.x, given.y, given.scale, bias, **teacher)
        assert isinstance(value, Tensor)
        results.append((value, torch.autograd.grad(value, (given.x, given.y, given.scale, bias))))
    (value, (dx, dy, dscale, dbias)), (expected, (*wanted, wanted_dbias)) = results
    worst = worst_error(value, (dx, dy, dscale), expected, (wanted[0], wanted[1], wanted[2]), float(batch.scale.detach()))
    return max(worst, float((dbias - wanted_dbias).abs()) / max(float(wanted_dbias.abs()), 1.0))


@memories
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 41])
def test_every_loss_equals_float64(name: str, n: int, max_memory: int) -> None:
    assert error(name, make_batch(n, 24), max_memory=max_memory) <= (1e-5 if "logarithms" in name else 4e-6)


@memories
def test_students_own_features_teach(max_memory: int) -> None:
    assert error("otter", make_batch(41, 24), own_teacher=True, max_memory=max_memory) <= 4e-6


@pytest.mark.parametrize("family", ["clustered", "duplicated", "outlier", "equal"])
def test_hard_data(family: str) -> None:
    assert error("otter, logarithms", make_batch(41, 24, family=family)) <= 5e-5


@pytest.mark.parametrize("scale", [0.0, -14.3, 100.0])
@pytest.mark.parametrize("name", ["otter", "info_nce", "siglip"])
def test_any_scale(name: str, scale: float) -> None:
    """Within a few roundings of logits as large as the scale, which are relative errors of their exponentials."""
    assert error(name, make_batch(41, 24, scale=scale)) <= max(1e-5, 6 * 2**-24 * abs(scale))


@memories
@pytest.mark.parametrize("name", ["otter", "otter, official", "otter, logarithms", "info_nce", "siglip"])
def test_the_diagonal_of_a_later_row_block(name: str, max_memory: int) -> None:
    batch = make_batch(260, 8)
    few = {"cpu_block_elements": 1, "device_block_elements": 1, "device_block_rows": 256}
    fewer = {"device_pass_elements": 1, "device_gradient_elements": 128**2, "device_gradient_rows": 128}
    with memory.limits(**few, **fewer):
        assert len(memory.row_blocks(260, 260, torch.device(DEVICE))) == 2
        assert len(memory.pass_blocks(260, 260)) == 3
        assert len(memory.gradient_blocks(260, 260, 1)) == 9
        assert error(name, batch, max_memory=max_memory) <= 4e-6


def test_a_prior_for_each_pair_parts_and_a_second_temperature() -> None:
    batch = on_device(make_batch(41, 24))
    call: dict[str, Any] = {"alpha": torch.linspace(0, 1, 41, device=DEVICE), "distill_logit_scale": 20.0, "output_dict": True}
    found = OTTERLoss(backend="triton")(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    expected = OTTERLoss()(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    for name, part in expected.items():
        assert relative(found[name], part) <= 2e-6


@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_results_repeat_to_the_bit(name: str) -> None:
    batch = on_device(make_batch(41, 24))
    runs = [VARIANTS[name](backend="triton")(batch.x, batch.y, batch.scale, **batch.teacher()) for _ in range(2)]
    first, second = ([value, *batch.gradients(value)] for value in runs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_losses_compile_whole(name: str, dtype: torch.dtype) -> None:
    batch, loss = on_device(make_batch(41, 24), dtype), VARIANTS[name](backend="triton")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, expected = (run(batch.x, batch.y, batch.scale, **batch.teacher()) for run in (compiled, loss))
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-6


@pytest.mark.parametrize("name", ["otter", "otter, logarithms", "info_nce", "siglip"])
def test_every_tile_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever the tuner may choose."""
    from otter_losses.ops.triton import cross_entropy, sigmoid, sinkhorn

    batch = make_batch(70, 8)
    for choice in range(1, 3):
        for module in (cross_entropy, sigmoid, sinkhorn):
            monkeypatch.setattr(
                module, "fastest", lambda name, like, shape, choices, run, choice=choice: choices[choice % len(choices)]
            )
        assert error(name, batch) <= (1e-5 if "logarithms" in name else 4e-6)


@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_features_of_any_strides(name: str) -> None:
    batch = on_device(make_batch(41, 24))
    loss = VARIANTS[name](backend="triton")
    expected = loss(batch.x, batch.y, batch.scale, **batch.teacher())
    wanted = batch.gradients(expected)
    x, y = (each.detach().T.contiguous().T.requires_grad_() for each in (batch.x, batch.y))
    spread = torch.zeros(41, 60, device=DEVICE)
    v, t = spread[:, ::2][:, : batch.v.shape[1]].copy_(batch.v), batch.t.T.contiguous().T
    assert not any(each.is_contiguous() for each in (x, y, v, t))
    value = loss(x, y, batch.scale, dist_image_features=v, dist_text_features=t)
    gradients = torch.autograd.grad(value, (x, y, batch.scale))
    assert worst_error(value, gradients, expected, wanted) <= 2e-6


@pytest.mark.parametrize("name", ["otter", "info_nce", "siglip"])
def test_deterministic_mode_and_checkpointing_change_nothing(name: str) -> None:
    batch, loss = on_device(make_batch(41, 24)), VARIANTS[name](backend="triton")
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher())
    wanted = batch.gradients(value)
    torch.use_deterministic_algorithms(True)
    try:
        again = checkpoint(lambda x, y: loss(x, y, batch.scale, **batch.teacher()), batch.x, batch.y, use_reentrant=False)
        assert isinstance(again, Tensor)
        gradients = batch.gradients(again)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(value, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["otter", "label_smoothing", "siglip"])
def test_autocast_multiplies_in_half_precision(name: str, dtype: torch.dtype) -> None:
    """The gradient of float32 features is not rounded with them."""
    batch, loss = on_device(make_batch(41, 24), dtype), VARIANTS[name](backend="triton")
    half = on_device(make_batch(41, 24), torch.bfloat16)
    expected = loss(half.x, half.y, half.scale.detach().float(), **half.teacher())
    wanted = torch.autograd.grad(expected, (half.x, half.y))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = loss(batch.x, batch.y, half.scale.detach().float(), **batch.teacher())
        gradients = torch.autograd.grad(value, (batch.x, batch.y))
    assert torch.equal(value, expected)
    assert all(gradient.dtype == dtype for gradient in gradients)
    check_equal([gradient.bfloat16() for gradient in gradients], wanted)
    if dtype == torch.float32:
        assert not any(torch.equal(one, other.float()) for one, other in zip(gradients, wanted, strict=True))


@memories
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["otter", "siglip"])
def test_a_frozen_tower_leaves_the_other_gradients_as_they_are(name: str, side: str, dtype: torch.dtype, max_memory: int) -> None:
    batch = make_batch(41, 24).to(dtype)
    loss = VARIANTS[name](backend="triton", max_memory=max_memory)
    both = on_device(batch, dtype)
    dx, dy, dscale = both.gradients(loss(both.x, both.y, both.scale, **both.teacher()))
    x, y = (both.x, both.y.detach()) if side == "x" else (both.x.detach(), both.y)
    value = loss(x, y, both.scale, **both.teacher())
    found, found_scale = torch.autograd.grad(value, (x if side == "x" else y, both.scale))
    assert torch.equal(found, dx if side == "x" else dy)
    assert relative(found_scale, dscale, floor=0.1) <= 1e-4


@pytest.mark.parametrize("where", ["x", "y", "v", "t"])
@pytest.mark.parametrize("way", ["float32", "codes", "blocks"])
@pytest.mark.parametrize("name", ["otter", "otter, logarithms", "distillation", "info_nce", "siglip"])
def test_a_nan_that_comes_in_comes_out(monkeypatch: pytest.MonkeyPatch, name: str, way: str, where: str) -> None:
    """Where nobody looks at the features."""
    if where in "vt" and name in ("info_nce", "siglip"):
        pytest.skip("has no teacher")
    monkeypatch.setattr(checks, "check_finite", lambda name, tensor: None)
    batch = on_device(make_batch(41, 24), torch.bfloat16 if way == "codes" else torch.float32)
    with torch.no_grad(), memory.limits(codes_from=0):
        getattr(batch, where)[7, 3] = torch.nan
        loss = VARIANTS[name](backend="triton", max_memory=BLOCKS if way == "blocks" else DENSE)
        parts = loss(batch.x, batch.y, batch.scale, **batch.teacher(), output_dict=True)
    assert isinstance(parts, dict)
    assert all(bool(part.isnan()) for key, part in parts.items() if where in "xy" or key == "distill_loss")


@pytest.mark.parametrize("way", ["float32", "codes", "blocks"])
def test_a_teacher_that_is_far_from_normalised_gives_no_number_rather_than_a_wrong_one(way: str) -> None:
    """Where nobody looks at its norms, and plain numbers were chosen for those of unit norm."""
    batch = on_device(make_batch(41, 24), torch.bfloat16 if way == "codes" else torch.float32)
    loss = OTTERLoss(backend="triton", epsilon=0.08, max_memory=BLOCKS if way == "blocks" else DENSE)
    with torch.no_grad(), memory.limits(codes_from=0):
        values = [loss(batch.x, batch.y, 14.3, None, norm * batch.v, norm * batch.t) for norm in (1.01, 1.5, 4.0)]
    assert [bool(value.isnan()) for value in values] == [False, True, True]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-9])
def test_an_epsilon_that_one_float_is_too_short_for(epsilon: float) -> None:
    batch = on_device(make_batch(41, 24))
    with pytest.raises(RuntimeError, match=r"span at most 1024; this epsilon makes them span up to 6e\+0.*'auto' or 'torch'"):
        OTTERLoss(backend="triton", epsilon=epsilon)(batch.x, batch.y, 14.3)
    execution = Execution("auto", 0, WHOLE_BATCH)
    for each, backend in ((0.1, "auto"), (0.01, "auto"), (epsilon, "torch")):
        soft = transported(batch.v, batch.t, batch.scale, logit_range=6 / each)
        assert execution.for_targets(soft).backend == backend


# ---- what cannot run says what is missing ----


def test_float64_is_refused() -> None:
    batch = on_device(make_batch(3, 4), torch.float64)
    with pytest.raises(RuntimeError, match=r"computes in float32, but the features are torch\.float64"):
        OTTERLoss(backend="triton")(batch.x, batch.y, 14.3)


def test_a_cpu_is_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    features = make_batch(3, 4).x.detach().float()
    with pytest.raises(RuntimeError, match="needs features on a CUDA device, but they are on cpu"):
        SigLIPLoss(backend="triton")(features, features, 14.3)


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    features = make_batch(3, 4).x.detach().float()
    with pytest.raises(RuntimeError, match="needs the package triton, which is not installed"):
        InfoNCELoss(backend="triton")(features, features, 14.3)
