"""Peak memory of the fused arithmetic, counted without a GPU: tensors without data, whose bytes are added up while they live."""

import pytest
import torch

from otter_losses.ops import memory
from otter_losses.ops.problem import SigmoidProblem, Student
from tests.helpers.peak import Peak
from tests.helpers.problems import forward_and_backward, make_problem, transported

pytest.importorskip("triton", reason="triton is there on Linux only")

GIB = 2**30


def peak(monkeypatch: pytest.MonkeyPatch, pairs: int, width: int, dtype: torch.dtype, teacher: bool, max_memory: int) -> int:
    """Bytes beyond the inputs of one forward and backward."""
    from otter_losses.ops.triton import cross_entropy, feature_gradients, gemm
    from otter_losses.ops.triton.launch import observed

    monkeypatch.setattr(feature_gradients, "add_product", lambda *arguments, **others: None)
    monkeypatch.setattr(gemm, "product", lambda a, b, out: out)
    x, y, v, t = (torch.empty(pairs, width, dtype=dtype, device="meta") for _ in range(4))
    scale = torch.empty((), device="meta")
    soft = transported(v, t, torch.empty((), device="meta")) if teacher else None
    storage = memory.storage(x, pairs, has_soft_targets=teacher, may_encode=True, max_memory=max_memory, fused=True)
    problem = make_problem(x, y, scale, storage, soft, backend="triton")
    with Peak() as counted, observed(lambda *launch: None, runs=False):
        forward_and_backward(cross_entropy, problem)
    return int(counted.most)


def test_the_count_counts() -> None:
    with Peak() as counted:
        first = torch.empty(1000, device="meta")
        second = first * 2
        del first
        third = second[:10] + 1
        assert counted.bytes == 4000 + 40
        assert counted.most == 8000
        del second, third
        assert counted.bytes == 0


@pytest.mark.parametrize(
    ("pairs", "width", "dtype", "teacher", "max_memory", "low", "high"),
    [
        (65_536, 768, torch.bfloat16, False, 2 * GIB, 0.5 * GIB, 0.65 * GIB),
        (65_536, 512, torch.bfloat16, True, 0, 0.5 * GIB, 0.84 * GIB),
        (32_768, 512, torch.bfloat16, True, 2 * GIB, 2.0 * GIB, 2.3 * GIB),
        (262_144, 512, torch.bfloat16, True, 0, 2.0 * GIB, 2.75 * GIB),
        (16_384, 512, torch.float32, True, 2 * GIB, 1.0 * GIB, 1.4 * GIB),
        (65_536, 512, torch.float32, True, 0, 1.0 * GIB, 1.6 * GIB),
    ],
)
def test_peak(
    monkeypatch: pytest.MonkeyPatch,
    pairs: int,
    width: int,
    dtype: torch.dtype,
    teacher: bool,
    max_memory: int,
    low: float,
    high: float,
) -> None:
    found = peak(monkeypatch, pairs, width, dtype, teacher, max_memory)
    assert low < found <= high, f"{found / GIB:.3f} GiB"


@pytest.mark.parametrize(("dtype", "high"), [(torch.bfloat16, 0.45 * GIB), (torch.float32, 0.85 * GIB)])
def test_peak_of_the_sigmoid_loss_s_value_and_gradient_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, high: float
) -> None:
    """65,536 pairs of width 512."""
    from otter_losses.ops.triton import feature_gradients, sigmoid
    from otter_losses.ops.triton.launch import observed

    monkeypatch.setattr(feature_gradients, "add_product", lambda *arguments, **others: None)
    x, y = (torch.empty(65_536, 512, dtype=dtype, device="meta") for _ in range(2))
    scale = bias = torch.empty((), device="meta")
    problem = SigmoidProblem(Student(x, y, y, scale), bias, slice(0, len(x)), False)
    with Peak() as counted, observed(lambda *launch: None, runs=False):
        sigmoid.mean_with_gradients(problem, True, True)
    assert 0.4 * GIB < counted.most <= high, f"{counted.most / GIB:.3f} GiB"
