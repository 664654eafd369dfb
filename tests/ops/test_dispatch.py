"""Which backend computes, what happens where it cannot, and that none of them stops a device to look at its numbers."""

import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import InfoNCELoss, OTTERLoss, SigLIPLoss
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import dispatch, memory, products
from otter_losses.ops.eager import cross_entropy as eager
from otter_losses.ops.eager import sigmoid as eager_sigmoid
from otter_losses.ops.memory import Storage
from otter_losses.ops.problem import SigmoidProblem, Student
from otter_losses.ops.targets import HardTargets
from tests.helpers.batches import make_batch
from tests.helpers.problems import forward_and_backward, make_problem, transported

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


class OnGPU:
    """As much of features as a decision looks at."""

    device = GPU

    def __init__(self, pairs: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (pairs, 512), dtype


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU to be asked about; what it answers can be changed."""
    answers: dict[str, Any] = {"available": True, "capability": (9, 0), "capturing": False, "failure": None, "tried": 0}

    def failure(device: torch.device) -> str | None:
        answers["tried"] += 1
        return answers["failure"]  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: answers["available"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: answers["capability"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: answers["capturing"])
    monkeypatch.setattr(dispatch, "_failed_trial", failure)
    monkeypatch.setattr(dispatch, "_reasons", {})
    return answers


def fuses(pairs: int = 512, dtype: torch.dtype = torch.bfloat16, backend: str = "auto") -> bool:
    features: Any = OnGPU(pairs, dtype)
    return dispatch.is_fused(dispatch.resolve(backend, features, pairs))


def test_auto_takes_the_kernels_on_a_gpu(gpu: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    assert fuses()
    assert fuses(dtype=torch.float32)
    assert gpu["tried"] == 1
    assert not fuses(dispatch.FEWEST_PAIRS - 1)
    assert not fuses(dtype=torch.float64)
    assert dispatch.resolve("auto", torch.zeros(512, 4), 512) == "torch"
    assert not fuses(backend="torch")


@pytest.mark.parametrize(("answer", "value"), [("available", False), ("capability", (6, 1))])
def test_auto_falls_back_in_silence_where_a_gpu_has_no_kernels(gpu: dict[str, Any], answer: str, value: object) -> None:
    gpu[answer] = value
    assert not fuses()
    assert gpu["tried"] == 0


def test_auto_leaves_other_makers_gpus_to_torch(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not fuses()
    assert gpu["tried"] == 0


def test_a_trial_decides_on_other_makers_gpus_where_kernels_are_asked_for(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose capabilities are numbers of another kind."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    monkeypatch.setattr(torch.version, "cuda", None)
    gpu["capability"] = (6, 1)
    assert fuses(backend="triton")
    assert gpu["tried"] == 1
    gpu["failure"] = f"{dispatch.UNEXPECTED} (no compiler)."
    dispatch._reasons.clear()
    with pytest.raises(RuntimeError, match=r"backend='triton' does not run on cuda:0: Triton could not .* Use backend='torch'\."):
        fuses(backend="triton")


@pytest.mark.parametrize(
    ("name", "expected"), [("gfx90a:sramecc+:xnack-", True), ("gfx942", True), ("gfx906", False), ("gfx1100", False)]
)
def test_kernels_multiply_themselves_where_amd_has_matrix_units(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, expected: bool
) -> None:
    class Properties:
        gcnArchName = name

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(products, "_sums_in_float32", lambda device, dtype: (True, True))
    computes_tiles = products._computes_tiles.__wrapped__
    assert computes_tiles(GPU, torch.bfloat16) == expected
    assert computes_tiles(GPU, torch.float32) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
def test_kernels_multiply_themselves_from_ampere_on(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    gpu["capability"] = capability
    assert products._computes_tiles.__wrapped__(GPU, torch.float16) == expected


def test_auto_falls_back_in_silence_without_triton(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert not fuses()


def test_auto_warns_once_where_kernels_should_run_and_do_not(gpu: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    gpu["failure"] = f"{dispatch.UNEXPECTED} (no compiler)."
    with pytest.warns(
        RuntimeWarning, match="otter_losses computes in plain torch on cuda:0: Triton could not compile or run a kernel"
    ):
        assert not fuses()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fuses()
    assert gpu["tried"] == 1


def test_a_capture_is_not_broken_by_a_trial(gpu: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    gpu["capturing"] = True
    assert fuses()
    assert gpu["tried"] == 0


def test_what_was_asked_for_by_name_says_why_it_does_not_run(gpu: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    gpu["capability"] = (6, 1)
    features: Any = OnGPU(512, torch.float32)
    with pytest.raises(RuntimeError, match=r"backend='triton' does not run on cuda:0: its compute capability is below 7\.0\."):
        dispatch.resolve("triton", features, 512)


FAILING = """
import os, sys, types
os.environ["TRITON_INTERPRET"] = "1"
import torch
from otter_losses.ops import dispatch
from otter_losses.ops.triton import features

def fails(*values):
    raise PermissionError(13, "Permission denied: cache")

{change}
print(dispatch._failed_trial(torch.device("cpu")))
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("", "None"),
        (
            "features.split = fails",
            "Triton could not compile or run a kernel (PermissionError: [Errno 13] Permission denied: cache). "
            "Triton needs a C compiler and a cache folder that it may write to (TRITON_CACHE_DIR).",
        ),
        (
            "features.split = lambda x, *_: features.Split(x.half(), x.half() + 1, torch.ones(2), torch.ones(()), 1)",
            "Triton could not compile or run a kernel (it gave wrong numbers).",
        ),
    ],
)
def test_a_trial_finds_what_goes_wrong(change: str, expected: str) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    command = [sys.executable, "-W", "ignore", "-c", FAILING.format(change=change)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == expected


# ---- the transport in one launch ----


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_cuda_says_what_it_lacks() -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    batch = make_batch(9, 6, dtype=torch.float32)
    message = r"backend='cuda' solves the transport on the chip, in one launch: the CUDA kernels need a CUDA device, but the"
    with pytest.raises(RuntimeError, match=message):
        OTTERLoss(backend="cuda")(batch.x, batch.y, 14.3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")
def test_cuda_wants_plain_numbers_and_a_stored_matrix() -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    batch = make_batch(9, 6, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="it takes plain numbers, which this epsilon is too small for"):
        OTTERLoss(backend="cuda", epsilon=0.01)(batch.x, batch.y, 14.3)
    with pytest.raises(RuntimeError, match="a matrix stored in float32, which 9 pairs and max_memory do not leave"):
        OTTERLoss(backend="cuda", max_memory=0)(batch.x, batch.y, 14.3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_transport_is_solved_on_the_chip_where_it_can_be(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """With the kernel's contract in plain torch in place of the kernel."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    from otter_losses.ops.cuda import sinkhorn as cuda

    solved = []

    def solve(matrix: Tensor, shift: Tensor, iterations: int, out: tuple[Tensor, Tensor, Tensor]) -> None:
        solved.append(len(matrix))
        matrix.sub_(shift).exp_()
        image_columns, text_columns, text_rows = torch.ones(len(matrix)), 1 / matrix.sum(0), torch.ones(len(matrix))
        for _ in range(iterations):
            image_rows, text_rows = 1 / (matrix @ image_columns), 1 / (matrix @ text_columns)
            image_columns, text_columns = 1 / (image_rows @ matrix), 1 / (text_rows @ matrix)
        for place, scaling in zip(out, (image_columns, text_rows, text_columns), strict=True):
            place.copy_(scaling)

    monkeypatch.setattr(cuda, "obstacle", lambda n, device: None)
    monkeypatch.setattr(cuda, "solve", solve)
    monkeypatch.setattr(dispatch, "resolve", lambda backend, features, pairs: backend)
    for dtype in (torch.float32, torch.bfloat16):
        batch = make_batch(41, 24).to(dtype)
        expected = OTTERLoss(backend="triton")(batch.x, batch.y, batch.scale, **batch.teacher())
        value = OTTERLoss(backend=asked)(batch.x, batch.y, batch.scale, **batch.teacher())
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=0)
        wanted = batch.gradients(expected)
        for found, want in zip(batch.gradients(value), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)
    assert solved == [41, 41]


# ---- out of memory ----


@pytest.mark.parametrize("build", [OTTERLoss, InfoNCELoss, SigLIPLoss])
def test_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")

    for module in (eager, eager_sigmoid):
        monkeypatch.setattr(module, "eager_blocks", full)
    batch = make_batch(9, 6, dtype=torch.float32)
    with pytest.raises(torch.OutOfMemoryError, match=r"4\.00 GiB.\notter_losses may keep 2 GiB .*smaller max_memory \(0: none\)"):
        build()(batch.x, batch.y, 14.3)


def test_default_budget_is_two_gigabytes_or_an_eighth_of_a_gpu(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    for total, expected in ((8 << 30, 2 << 30), (80 << 30, 10 << 30)):
        Properties.total_memory = total
        memory._memory_of.cache_clear()
        assert memory.budget(None, GPU) == expected
    memory._memory_of.cache_clear()
    assert memory.budget(None, torch.device("cpu")) == 2 << 30
    assert memory.budget(0, GPU) == 0
    assert memory.budget(5, GPU) == 5


# ---- no look at the device's numbers: the condition for CUDA graphs ----


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("logit_range", [40.0, 400.0, math.inf], ids=["plain numbers", "logarithms", "unknown"])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_reads_a_number(backend: str, logit_range: float, keeps: bool, dtype: torch.dtype) -> None:
    """Tensors without data stand for those of a device: to look at one is an error."""
    module: Any = eager
    if backend == "triton":
        module = without_launches("cross_entropy")
    x, y, v, t = (torch.empty(70, 16, dtype=dtype, device="meta") for _ in range(4))
    inv_epsilon, scale = (torch.empty((), device="meta") for _ in range(2))
    soft = transported(v, t, inv_epsilon, logit_range=logit_range, divergence=True)
    gibbs = None if not keeps else torch.int16 if backend == "triton" and dtype == torch.bfloat16 else torch.float32
    storage = Storage(gibbs, keeps and backend == "torch")
    problem = make_problem(x, y, scale, storage, soft, backend=backend, hard=HardTargets(0.9, 0.1))
    dx, dy, dscale = forward_and_backward(module, problem)
    assert (dx.shape, dx.dtype, dy.shape, dscale.shape) == (x.shape, dtype, y.shape, ())


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_step_of_the_sigmoid_loss_reads_a_number(backend: str, dtype: torch.dtype) -> None:
    module: Any = eager_sigmoid
    if backend == "triton":
        module = without_launches("sigmoid")
    x, y = (torch.empty(70, 16, dtype=dtype, device="meta") for _ in range(2))
    scale = bias = torch.empty((), device="meta")
    problem = SigmoidProblem(Student(x, y, y, scale), bias, slice(0, 70), backend == "torch")
    losses, kept = module.forward(problem)
    gradients = module.backward(problem, losses, kept, True, True, WHOLE_BATCH)
    assert [each.shape for each in gradients] == [x.shape, y.shape, (), ()]
    if backend == "triton":
        mean, gradients = module.mean_with_gradients(problem, True, True)
        assert [each.shape for each in (mean, *gradients)] == [(), x.shape, y.shape, (), ()]


def without_launches(name: str) -> Any:
    """A module of the Triton backend, none of whose kernels runs."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    from importlib import import_module

    from otter_losses.ops.triton.launch import observed

    arithmetic = import_module(f"otter_losses.ops.triton.{name}")

    class Unlaunched:
        def __getattr__(self, step: str) -> Any:
            return observed(lambda *launch: None, runs=False)(getattr(arithmetic, step))

    return Unlaunched()
