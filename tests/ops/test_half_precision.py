"""Half-precision features in the fused kernels: products at the matrix units' full rate, and still nearly the exact gradient."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import InfoNCELoss, OTTERLoss
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import memory, products
from otter_losses.ops.memory import Storage
from otter_losses.ops.problem import Saved
from tests.helpers.batches import DEVICE, Batch, make_batch, make_features, on_device
from tests.helpers.checks import relative
from tests.helpers.losses import VARIANTS, memories
from tests.helpers.problems import make_problem, transported

pytest.importorskip("triton", reason="triton is there on Linux only")
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]

WAYS = {"codes": (2 << 30, 0), "float32": (2 << 30, 1 << 20), "recomputed": (0, 0)}
"""max_memory, and the pairs up to which the Gibbs kernel stays float32."""


@contextlib.contextmanager
def unrounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, ...]]]:
    """Gradients as they are before they are rounded to the features' type, collected."""
    from otter_losses.ops.triton import cross_entropy, feature_gradients, sigmoid

    found: list[tuple[Tensor, ...]] = []

    def wide(like: Tensor, wants: bool, dtype: torch.dtype) -> Tensor:
        return like.new_empty(like.shape if wants else 0, dtype=torch.float32)

    def noting(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def run(problem: Any, *arguments: Any) -> tuple[Tensor, ...]:
            gradients = backward(problem, *arguments)
            found.append(gradients)
            dtype = problem.student.image_features.dtype
            return tuple(each.to(dtype) if each.dim() == 2 else each for each in gradients)

        return run

    def noting_mean(run: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
            mean, gradients = run(*arguments)
            found.append(gradients)
            return mean, gradients

        return noted

    with monkeypatch.context() as patch:
        patch.setattr(feature_gradients, "wanted", wide)
        patch.setattr(sigmoid, "mean_with_gradients", noting_mean(sigmoid.mean_with_gradients))
        for module in (cross_entropy, sigmoid):
            patch.setattr(module, "backward", noting(module.backward))
        yield found


def both(name: str, half: Batch, **options: Any) -> tuple[Tensor, tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
    """Value and gradients, and those of float64 on the same numbers."""
    exact = half.to(torch.float64)
    results: list[Any] = []
    for given, backend in ((half, "triton"), (exact, "torch")):
        scale = given.scale.detach().to(torch.float64 if given is exact else torch.float32).requires_grad_()
        value = VARIANTS[name](backend=backend, **options)(given.x, given.y, scale, -3.0, **given.teacher())
        results += [value.detach(), torch.autograd.grad(value, (given.x, given.y, scale))]
    return results[0], results[1], results[2], results[3]


@pytest.mark.parametrize(
    ("family", "way"),
    [(family, "codes") for family in ("random", "clustered", "duplicated", "outlier")]
    + [("random", "float32"), ("random", "recomputed")],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_before_and_after_rounding(monkeypatch: pytest.MonkeyPatch, name: str, family: str, way: str) -> None:
    """Of bfloat16; against float64 on the same numbers. Rounding alone costs 1.7e-3."""
    max_memory, codes_from = WAYS[way]
    half = on_device(make_batch(72, 32, family=family), torch.bfloat16)
    with memory.limits(codes_from=codes_from), unrounded(monkeypatch) as found:
        value, after, expected, wanted = both(name, half, max_memory=max_memory)
    assert value.dtype == torch.float32
    assert float((value - expected).abs()) <= 3e-5 * max(float(expected.abs()), 1.0)
    (before,) = found
    for side in range(2):
        assert after[side].dtype == torch.bfloat16
        assert relative(before[side], wanted[side]) <= 5e-4
        assert relative(after[side], wanted[side]) <= 2.5e-3
    assert relative(after[2], wanted[2], floor=0.1) <= 2e-4


@pytest.mark.parametrize("name", ["otter", "otter, logarithms", "info_nce", "siglip"])
def test_float16(name: str) -> None:
    value, gradients, expected, wanted = both(name, on_device(make_batch(96, 32), torch.float16))
    assert float((value - expected).abs()) <= 3e-5 * max(float(expected.abs()), 1.0)
    assert relative(gradients[0], wanted[0]) <= 5e-4
    assert relative(gradients[1], wanted[1]) <= 5e-4


@pytest.mark.parametrize("scale", [-14.3, 100.0])
@pytest.mark.parametrize("name", ["otter", "info_nce", "siglip"])
def test_any_scale(name: str, scale: float) -> None:
    _, gradients, _, wanted = both(name, on_device(make_batch(96, 32, scale=scale), torch.bfloat16))
    assert relative(gradients[0], wanted[0]) <= 2.5e-3
    assert relative(gradients[1], wanted[1]) <= 2.5e-3


@pytest.mark.parametrize("choice", range(5))
@pytest.mark.parametrize("name", ["otter", "info_nce", "siglip"])
def test_every_computed_tile_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch, name: str, choice: int) -> None:
    """Whatever the tuner may choose, where sizes fill whole tiles, and across their edges."""
    from otter_losses.ops.triton import cross_entropy, sigmoid
    from otter_losses.ops.triton.gemm import reads_descriptors

    taken: set[bool] = set()

    def fastest(name: str, like: Tensor, shape: tuple[int, int], choices: Any, run: object) -> Any:
        tile = choices[choice % len(choices)]
        taken.add(bool(tile["DESCRIPTORS"]))
        return tile

    for module in (cross_entropy, sigmoid):
        monkeypatch.setattr(module, "fastest", fastest)
    with memory.limits(codes_from=0):
        _, gradients, _, wanted = both(name, on_device(make_batch(144, 64), torch.bfloat16))
    assert choice or taken == {reads_descriptors(torch.device(DEVICE))}
    assert relative(gradients[0], wanted[0]) <= 2.5e-3
    assert relative(gradients[1], wanted[1]) <= 2.5e-3


@pytest.mark.parametrize("name", ["otter", "distillation", "info_nce", "siglip"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2.5e-3), (torch.float32, 4e-6)])
@memories
def test_products_are_stored_where_kernels_do_not_multiply(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tolerance: float, max_memory: int
) -> None:
    """As before Ampere."""
    from otter_losses.ops.triton.launch import observed

    sources: set[object] = set()
    monkeypatch.setattr(products, "computes_tiles", lambda device, dtype: False)
    with observed(lambda kernel, arguments: sources.add(arguments.get("COMPUTED"))):
        _, gradients, _, wanted = both(name, on_device(make_batch(72, 32), dtype), max_memory=max_memory)
    assert True not in sources
    assert relative(gradients[0], wanted[0]) <= tolerance
    assert relative(gradients[1], wanted[1]) <= tolerance


@pytest.mark.parametrize("name", ["otter", "info_nce", "siglip"])
def test_blocks_of_the_gradient(name: str) -> None:
    """Cut along both sides, with residuals of both."""
    half = on_device(make_batch(272, 16), torch.bfloat16)
    with memory.limits(device_pass_elements=1, device_gradient_elements=128**2, device_gradient_rows=128, codes_from=0):
        assert len(memory.gradient_blocks(272, 272, 1)) == 9
        value, gradients, expected, wanted = both(name, half)
    assert float((value - expected).abs()) <= 3e-5 * max(float(expected.abs()), 1.0)
    assert relative(gradients[0], wanted[0]) <= 2.5e-3
    assert relative(gradients[1], wanted[1]) <= 2.5e-3


def test_what_rounding_loses_cancels_between_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is there twice, so its two columns pull against each other: little is left of the gradient."""
    x, y = make_features("random", 48, 32)
    doubled = torch.cat((x, x)), torch.cat((y, y))
    leaves = [each.to(DEVICE, torch.bfloat16).requires_grad_() for each in doubled]
    scale = torch.tensor(20.0, device=DEVICE)
    with unrounded(monkeypatch) as found:
        torch.autograd.grad(InfoNCELoss(backend="triton")(*leaves, scale), leaves)
    exact = [each.detach().double().requires_grad_() for each in leaves]
    wanted = torch.autograd.grad(InfoNCELoss()(*exact, scale.double()), exact)
    assert float(wanted[0].norm()) < 0.05 * 20 / 96**0.5  # of a gradient that does not cancel
    assert relative(found[0][0], wanted[0]) <= 5e-4
    assert relative(found[0][1], wanted[1]) <= 5e-4


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_features_far_from_unit_norm(factor: float) -> None:
    half = on_device(make_batch(41, 24), torch.bfloat16)
    leaves = [(each.detach() * factor).requires_grad_() for each in (half.x, half.y)]
    scale = 14.3 / factor**2
    found = torch.autograd.grad(InfoNCELoss(backend="triton")(*leaves, scale), leaves)
    exact = [each.detach().double().requires_grad_() for each in leaves]
    wanted = torch.autograd.grad(InfoNCELoss()(*exact, scale), exact)
    assert relative(found[0], wanted[0]) <= 2.5e-3
    assert relative(found[1], wanted[1]) <= 2.5e-3


@pytest.mark.parametrize("teacher", [torch.float32, torch.float16])
def test_a_teacher_of_another_type(teacher: torch.dtype) -> None:
    half = on_device(make_batch(41, 24), torch.bfloat16)
    mixed = Batch(half.x, half.y, half.scale, half.v.to(teacher), half.t.to(teacher))
    value, gradients, expected, wanted = both("otter", mixed)
    assert float((value - expected).abs()) <= 3e-5
    assert relative(gradients[0], wanted[0]) <= 2.5e-3


def test_half_precision_runs_repeat_to_the_bit() -> None:
    half = on_device(make_batch(70, 24), torch.bfloat16)
    runs = [OTTERLoss(backend="triton")(half.x, half.y, half.scale, **half.teacher()) for _ in range(2)]
    first, second = ([value, *half.gradients(value)] for value in runs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# ---- parts ----


def test_codes_are_off_by_half_a_step_at_most() -> None:
    from otter_losses.ops.triton.gibbs import GibbsKernel
    from otter_losses.ops.triton.sinkhorn import solve

    image, text = (each.to(DEVICE, torch.bfloat16) for each in make_features("random", 50, 16))
    soft = transported(image, text, torch.tensor(1 / 0.15, device=DEVICE), gamma=0.0, logit_range=2 / 0.15)
    problem = make_problem(image, text, torch.tensor(1.0, device=DEVICE), Storage(torch.int16, False), soft)
    saved = Saved.unwritten(problem)
    solve(GibbsKernel.build(problem, saved), 5, saved, "triton", WHOLE_BATCH)
    codes = saved.gibbs
    gain, shift, step, *_ = (float(number) for number in saved.scalars)
    v, t = image.double(), text.double()
    logits = gain * (v @ t.T)
    octaves = (codes.double().remainder(65536) + 32768).remainder(65536) - 65535
    off = ~torch.eye(50, dtype=torch.bool, device=DEVICE)
    assert bool((codes.diagonal() == -32768).all())
    error = (octaves * step * torch.log(torch.tensor(2.0)).double() - (logits - shift))[off].abs().max()
    step_of_e = 2 / 0.15 / 65534
    assert 0.4 * step_of_e < float(error) <= 0.53 * step_of_e


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("peak", [2.0**-30, 1.0, 1.75, 2.0**40])
def test_to_float16_is_exact(dtype: torch.dtype, peak: float) -> None:
    from otter_losses.ops.triton.features import split

    if dtype == torch.float16 and not 2**-14 < peak < 2**15:
        pytest.skip("not a float16")
    values = (torch.arange(-127, 128, 6, device=DEVICE)[:42] / 128 * peak).reshape(6, 7).to(dtype)
    scale = torch.tensor(3.0, device=DEVICE)
    found = split(values.T.contiguous().T, values[:4] / 8, scale, 1, WHOLE_BATCH)
    assert found.x.dtype == found.y.dtype == torch.float16
    for half, power, wanted in zip((found.x, found.y), found.powers, (values, values[:4] / 8), strict=True):
        assert torch.equal(half.double() * power.double(), wanted.double())
        assert 4096 <= float(half.abs().max()) < 8192
    assert float(found.scale) == 3 * float(found.powers[0]) * float(found.powers[1])


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_two_planes_multiply_as_float32_does(spread: float) -> None:
    """Some columns of features far smaller than others."""
    from otter_losses.ops.triton.features import split

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 64, generator=generator).mul_(torch.linspace(spread, 1, 64)).to(DEVICE)
    found = split(x, y[:30], torch.ones((), device=DEVICE), 2, WHOLE_BATCH)
    wanted = x.double() @ y[:30].double().T
    exact = found.x.double() @ found.y.double().T * found.scale.double()
    sizes = x.double().abs() @ y[:30].double().abs().T
    assert float(((exact - wanted) / sizes).abs().max()) <= 2**-22
    for parts, power, whole in ((found.x_parts, found.powers[0], x), (found.y_parts, found.powers[1], y[:30])):
        error = (parts[0].double() + parts[1].double()) * power.double() - whole.double()
        assert float(error.abs().max()) <= 2**-22 * float(whole.abs().max())


@pytest.mark.parametrize(
    ("x", "teacher", "codes", "max_memory", "expected"),
    [
        (torch.bfloat16, True, True, 2 * 4096**2, Storage(torch.int16, False)),
        (torch.bfloat16, True, True, 2 * 4096**2 - 1, Storage(None, False)),
        (torch.bfloat16, True, False, 4 * 4096**2, Storage(torch.float32, False)),
        (torch.bfloat16, False, False, 1 << 40, Storage(None, False)),
        (torch.float32, True, True, 8 * 4096**2, Storage(torch.float32, False)),
        (torch.float32, True, True, 4 * 4096**2 - 1, Storage(None, False)),
        (torch.float32, False, False, 1 << 40, Storage(None, False)),
    ],
)
def test_what_is_stored(x: torch.dtype, teacher: bool, codes: bool, max_memory: int, expected: Storage) -> None:
    features = torch.empty(4096, 8, dtype=x, device="meta")
    assert (
        memory.storage(features, 4096, has_soft_targets=teacher, may_encode=codes, max_memory=max_memory, fused=True) == expected
    )


@pytest.mark.parametrize(
    ("teacher", "max_memory", "expected"),
    [
        (True, 8 * 4096**2, Storage(torch.float32, True)),
        (True, 8 * 4096**2 - 1, Storage(torch.float32, False)),
        (True, 4 * 4096**2 - 1, Storage(None, False)),
        (False, 4 * 4096**2, Storage(None, True)),
    ],
)
def test_what_is_stored_where_kernels_do_not_multiply(
    monkeypatch: pytest.MonkeyPatch, teacher: bool, max_memory: int, expected: Storage
) -> None:
    monkeypatch.setattr(products, "computes_tiles", lambda device, dtype: False)
    features = torch.empty(4096, 8, device="meta")
    stored = memory.storage(features, 4096, has_soft_targets=teacher, may_encode=True, max_memory=max_memory, fused=True)
    assert stored == expected


def test_a_small_kernel_stays_float32() -> None:
    features = torch.empty(memory.Limits.codes_from, 8, dtype=torch.bfloat16, device="meta")
    stored = memory.storage(features, len(features), has_soft_targets=True, may_encode=True, max_memory=2 << 30, fused=True)
    assert stored == Storage(torch.float32, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gamma_image", "gamma_text"), [(50.0, 0.0), (0.0, 50.0), (30.0, 50.0)])
def test_large_weights_within_a_modality_stay_in_float16_s_range(
    dtype: torch.dtype, gamma_image: float, gamma_text: float
) -> None:
    """Features with entries of 1, the greatest that unit features have."""
    eye = torch.eye(24, device=DEVICE)
    v, t = eye.to(dtype), eye.roll(1, 0).to(dtype)
    batch = on_device(make_batch(24, 16), dtype)
    options: dict[str, Any] = {"epsilon": 4.0, "gamma_image": gamma_image, "gamma_text": gamma_text}
    found = OTTERLoss(backend="triton", **options)(batch.x, batch.y, 14.3, dist_image_features=v, dist_text_features=t)
    exact = batch.to(torch.float64)
    call = {"dist_image_features": v.double(), "dist_text_features": t.double()}
    expected = OTTERLoss(backend="torch", **options)(exact.x, exact.y, 14.3, **call)
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert relative(found, expected) <= 1e-5


def test_the_greatest_feature_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program looks at rows far apart."""
    from otter_losses.ops.triton import features

    monkeypatch.setattr(features, "MOST_PEAKS", 3)
    for row in (0, 17, 69):
        x, y = torch.full((70, 9), 0.5, device=DEVICE), torch.full((50, 9), 0.25, device=DEVICE)
        x[row, 8] = -40.0
        found = features.split(x, y, torch.ones((), device=DEVICE), 1, WHOLE_BATCH)
        assert found.powers.tolist() == [32 / 4096, 0.25 / 4096]
