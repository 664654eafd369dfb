"""The CUDA C++ kernel without a GPU: its source run by a CPU in place of one, its machine code, its cache, its messages."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from otter_losses.ops import cache
from otter_losses.ops.cuda import nvrtc, sinkhorn
from otter_losses.ops.cuda.sinkhorn import CLUSTER, SOURCE, THREADS, Layout
from tests.helpers.checks import relative
from tests.helpers.paths import ROOT

EMULATED_THREADS = 64
EMULATION = f"""
#include "{SOURCE}"
extern "C" int launch(int cluster, int blocks, int shared_bytes, unsigned seed, PARAMETERS) {{
    return run(cluster ? sinkhorn_cluster : sinkhorn_grid, blocks, shared_bytes, seed, ARGUMENTS);
}}
"""
Solution = tuple[Tensor, Tensor, Tensor, Tensor]
"""K, v, u' and v'."""
Launch = Callable[[Layout, Tensor, Tensor, int, int], Solution]


# ---- numbers: the source itself, compiled for the CPU ----


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    compiler_path = shutil.which("g++")
    if compiler_path is None or sys.platform != "linux":
        pytest.skip("g++ is missing: it compiles the kernel's source for the CPU")
    library = tmp_path_factory.mktemp("emulated") / "sinkhorn.so"
    emulator = ["-DEMULATED", f"-DTHREADS={EMULATED_THREADS}", "-include", str(ROOT / "tests/helpers/cuda_emulator.h")]
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared", "-x", "c++", "-"]
    command = [compiler_path, *emulator, *flags, "-o", str(library)]
    built = subprocess.run(command, input=EMULATION, capture_output=True, text=True)
    if "std=c++20" in built.stderr:
        pytest.skip("g++ is too old for C++20")
    assert built.returncode == 0, built.stderr
    entry = ctypes.CDLL(str(library)).launch

    def run(plan: Layout, logits: Tensor, shift: Tensor, iterations: int, seed: int) -> Solution:
        """The threads take turns in an order of the seed; memory that nothing is written to stays NaN."""
        n, guard = len(logits), 64
        kernel = logits.clone()
        vectors = [torch.full((n,), torch.nan) for _ in range(3)]
        shares = torch.full((plan.share_floats + guard,), torch.nan)
        arrived = torch.zeros((), dtype=torch.int32)
        addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (kernel, shift, *vectors, shares, arrived)]
        shared_bytes = plan.shared_bytes(EMULATED_THREADS)
        status = entry(int(plan.cluster), plan.blocks, shared_bytes, seed, *addresses, n, plan.rows, iterations)
        assert status == 0, {1: "a block wrote beyond its shared memory", 2: "the threads wait for each other"}[status]
        assert shares[plan.share_floats :].isnan().all()
        return kernel, vectors[0], vectors[1], vectors[2]

    return run


def expected(logits: Tensor, shift: Tensor, iterations: int) -> Solution:
    kernel = (logits.double() - shift.double()).exp()
    one = torch.ones(len(kernel), dtype=torch.float64)
    image_columns, text_rows, text_columns = one, one, 1 / (kernel.T @ one)
    for _ in range(iterations):
        image_columns = 1 / (kernel.T @ (1 / (kernel @ image_columns)))
        text_rows = 1 / (kernel @ text_columns)
        text_columns = 1 / (kernel.T @ text_rows)
    return kernel, image_columns, text_rows, text_columns


def make_logits(n: int, spread: float, removed: bool) -> Tensor:
    logits = spread * torch.rand(n, n, generator=torch.Generator().manual_seed(n))
    return logits.fill_diagonal_(-torch.inf) if removed else logits


def worst(found: Solution, wanted: Solution) -> float:
    """Of every single scaling, relative to its own size."""
    return max(float((one.double() / other - 1).abs().max()) for one, other in zip(found[1:], wanted[1:], strict=True))


def cluster(n: int, blocks: int = CLUSTER) -> Layout:
    return Layout(n, True, blocks, -(-n // blocks))


def grid(n: int, rows: int, idle: int = 0) -> Layout:
    return Layout(n, False, -(-n // rows) + idle, rows)


@pytest.mark.parametrize("removed", [False, True], ids=["whole", "diagonal removed"])
@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 2, 41, 130])
def test_numbers_are_those_of_float64(launch: Launch, n: int, iterations: int, removed: bool) -> None:
    if n == 1 and removed:
        pytest.skip("no mass is left")
    plans = [cluster(n), cluster(n, 2), grid(n, -(-n // 8)), grid(n, -(-n // 3), idle=2), grid(n, n)]
    for spread in (2.0, 75.0):
        logits, shift = make_logits(n, spread, removed), torch.tensor(spread)
        wanted = expected(logits, shift, iterations)
        for plan in plans:
            found = launch(plan, logits, shift, iterations, 0)
            assert worst(found, wanted) <= 5e-6, (plan, spread)
            assert relative(found[0], wanted[0]) <= 1e-6, (plan, spread)


@pytest.mark.parametrize("plan", [cluster(41), grid(41, 5), grid(41, 1)], ids=["cluster", "grid", "a row a block"])
def test_no_order_of_the_threads_changes_a_bit(launch: Launch, plan: Layout) -> None:
    logits, shift = make_logits(41, 20.0, True), torch.tensor(20.0)
    first, *others = (launch(plan, logits, shift, 2, seed) for seed in range(4))
    for other in others:
        assert all(torch.equal(one, same) for one, same in zip(first, other, strict=True))


@pytest.mark.parametrize("plan", [cluster(40), grid(40, 5)], ids=["cluster", "grid"])
def test_a_matrix_that_starts_anywhere(launch: Launch, plan: Layout) -> None:
    """Rows are whole vectors of four, but the first one is not where a vector may be."""
    storage = torch.empty(1601)
    logits = storage[1:].view(40, 40).copy_(make_logits(40, 5.0, False))
    shift = torch.tensor(5.0)
    aligned = launch(plan, logits, shift, 2, 0)
    assert worst(aligned, expected(logits, shift, 2)) <= 1e-6


# ---- where a matrix fits ----

KIBI = 1024
V100, A100, H200 = (80, 96 * KIBI, False), (108, 163 * KIBI, False), (132, 227 * KIBI, True)


def largest(multiprocessors: int, shared_bytes: int, clusters: bool) -> int:
    sizes = range(1, 5000)
    return max(n for n in sizes if sinkhorn.layout(n, multiprocessors, shared_bytes, clusters) is not None)


def test_largest_matrix_of_each_gpu() -> None:
    assert [largest(*gpu) for gpu in (V100, A100, H200)] == [1280, 1960, 2616]


def test_clusters_are_preferred_while_they_hold_the_matrix() -> None:
    plans = [sinkhorn.layout(n, *H200) for n in (1, 512, 2000)]
    assert [plan.kernel for plan in plans if plan] == ["sinkhorn_cluster", "sinkhorn_cluster", "sinkhorn_grid"]
    plan = sinkhorn.layout(512, *A100)
    assert plan == Layout(512, False, 103, 5)


@pytest.mark.parametrize("gpu", [V100, A100, H200, (4, 99 * KIBI, True)])
def test_layouts_cover_every_row_within_the_chip(gpu: tuple[int, int, bool]) -> None:
    for n in (*range(1, 300), 511, 512, 513, 1000, 1023):
        plan = sinkhorn.layout(n, *gpu)
        if plan is None:
            continue
        assert plan.blocks * plan.rows >= n
        assert plan.blocks <= gpu[0]
        assert plan.shared_bytes() <= gpu[1]
        assert plan.cluster or (plan.blocks - 1) * plan.rows < n


def test_too_large_a_matrix_fits_nowhere() -> None:
    assert sinkhorn.layout(5000, *H200) is None


# ---- machine code ----


def needs_a_compiler() -> None:
    reason = nvrtc.missing()
    if reason is not None:
        pytest.skip(reason)


def test_kernels_build_without_spills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_a_compiler()
    pytest.importorskip("triton", reason="cuobjdump comes with triton")
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.kernels.nvrtc import builds

    found = builds()
    names = [(build["switches"], build["architecture"]) for build in found]
    assert sorted(names) == [("cluster", 90), ("cluster", 100), ("grid", 80), ("grid", 90), ("grid", 100)]
    for build in found:
        assert build["stack_bytes"] == build["local_bytes"] == 0, build
        assert build["registers"] * THREADS <= 1 << 16, build
        assert build["shared_bytes"] <= KIBI, build  # what a block's launch takes; else the layout's arithmetic is off


# ---- cache ----


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A source, the cache's folder, and the names of what was built."""
    needs_a_compiler()
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "one.cu"
    source.write_text('extern "C" __global__ void one(float* x) { *x = VALUE; }')
    built: list[str] = []
    build = nvrtc._build

    def count(name: str, *rest: object) -> bytes:
        built.append(name)
        return build(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nvrtc, "_build", count)
    return source, tmp_path / "cache", built


DEFINES = [("VALUE", "1")]


def test_what_was_built_is_read_back(cached: tuple[Path, Path, list[str]]) -> None:
    source, folder, built = cached
    first = nvrtc.compile(source, 90, DEFINES)
    assert first.startswith(b"\x7fELF")
    assert nvrtc.compile(source, 90, DEFINES) == first
    assert len(built) == len(list(folder.iterdir())) == 1


def test_another_source_architecture_or_switch_is_built_anew(cached: tuple[Path, Path, list[str]]) -> None:
    source, folder, built = cached
    cubins = [nvrtc.compile(source, 90, DEFINES), nvrtc.compile(source, 80, DEFINES)]
    cubins.append(nvrtc.compile(source, 90, [("VALUE", "2")]))
    source.write_text(source.read_text().replace("VALUE", "VALUE + 2"))
    cubins.append(nvrtc.compile(source, 90, DEFINES))
    assert len(set(cubins)) == len(built) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", [lambda old: old[: len(old) // 2], lambda old: b"", lambda old: old[:-1] + b"\x55"])
def test_a_damaged_entry_is_built_again(cached: tuple[Path, Path, list[str]], damage: Callable[[bytes], bytes]) -> None:
    source, folder, built = cached
    first = nvrtc.compile(source, 90, DEFINES)
    (entry,) = folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert nvrtc.compile(source, 90, DEFINES) == first
    assert nvrtc.compile(source, 90, DEFINES) == first
    assert len(built) == 2


def test_an_entry_that_cannot_be_read_or_replaced_is_no_obstacle(cached: tuple[Path, Path, list[str]]) -> None:
    source, folder, built = cached
    first = nvrtc.compile(source, 90, DEFINES)
    (entry,) = folder.iterdir()
    entry.unlink()
    (entry / "occupied").mkdir(parents=True)
    assert nvrtc.compile(source, 90, DEFINES) == first
    assert len(built) == 2
    assert [each.name for each in folder.iterdir()] == [entry.name]


def test_a_folder_that_cannot_be_made_is_no_obstacle(
    cached: tuple[Path, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, built = cached
    monkeypatch.setenv("OTTER_LOSSES_CACHE_DIR", str(source / "cache"))
    assert nvrtc.compile(source, 90, DEFINES) == nvrtc.compile(source, 90, DEFINES)
    assert len(built) == 2


def test_two_processes_build_at_once(cached: tuple[Path, Path, list[str]]) -> None:
    source, folder, built = cached
    script = f"""
from pathlib import Path
from otter_losses.ops.cuda import nvrtc
print(nvrtc.compile(Path({str(source)!r}), 90, {DEFINES!r}).hex())
"""
    command = [sys.executable, "-W", "error", "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ) for _ in range(2)]
    outputs = {bytes.fromhex(process.communicate()[0]) for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == {nvrtc.compile(source, 90, DEFINES)}
    assert built == []
    assert len(list(folder.iterdir())) == 1


def test_default_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OTTER_LOSSES_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "otter_losses"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "otter_losses"


# ---- what cannot run says what is missing ----

FRESH = 'from otter_losses.ops.cuda import nvrtc; print(nvrtc.missing() or "all is there")'


def in_a_fresh_process(before: str) -> str:
    process = subprocess.run([sys.executable, "-c", before + FRESH], capture_output=True, text=True, cwd=ROOT, check=True)
    return process.stdout.strip()


def test_a_missing_cuda_core_is_named() -> None:
    text = in_a_fresh_process("import importlib.util as u; u.find_spec = lambda name: None; ")
    assert text.startswith("the CUDA kernels need the package cuda-core, which is not installed. Install it: pip install")
    assert '"otter_losses[cuda]"' in text


def test_a_missing_nvrtc_is_named() -> None:
    needs_a_compiler()
    lost = """
from cuda.bindings import nvrtc
def version(): raise RuntimeError('Failure finding "libnvrtc.so"')
nvrtc.nvrtcVersion = version
"""
    text = in_a_fresh_process(lost)
    assert text.startswith("the CUDA kernels need NVRTC, NVIDIA's compiler, which does not load (Failure finding")
    assert '"otter_losses[cuda]"' in text


def test_nothing_is_built_where_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_missing", lambda: ("cuda-core is not there", (0, 0), ()))
    with pytest.raises(RuntimeError, match="cuda-core is not there"):
        nvrtc.compile(SOURCE, 90)


def test_an_error_of_the_compiler_is_passed_on(cached: tuple[Path, Path, list[str]]) -> None:
    source, _, _ = cached
    with pytest.raises(RuntimeError, match=r'cannot build one\.cu for sm_90(.|\n)*identifier "VALUE" is undefined'):
        nvrtc.compile(source, 90)


def test_a_cpu_has_no_kernels() -> None:
    assert sinkhorn.missing(torch.device("cpu")) == "the CUDA kernels need a CUDA device, but the tensors are on cpu."


def test_a_pytorch_without_cuda_or_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this PyTorch is built without it" in (sinkhorn.missing(torch.device("cuda")) or "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "PyTorch finds none" in (sinkhorn.missing(torch.device("cuda")) or "")


@pytest.mark.parametrize(
    ("architecture", "driver", "reason"),
    [
        (61, 13000, r"compute capability 7\.0 \(Volta\) or newer, but cuda:3 has 6\.1"),
        (70, 13000, r'NVRTC 13\.0 does not know sm_70\. NVRTC 12 does: pip install "otter_losses\[cuda12\]"\.'),
        (140, 13000, r"NVRTC 13\.0 does not know sm_140\. Update it"),
        (90, 12080, r"NVRTC is of CUDA 13, the driver of CUDA 12\. Update the driver, or install NVRTC of its version"),
        (90, 13000, None),
    ],
)
def test_what_a_device_lacks(monkeypatch: pytest.MonkeyPatch, architecture: int, driver: int, reason: str | None) -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    monkeypatch.setattr(sinkhorn, "_chip", lambda device: (architecture, 132, 227 * KIBI, True))
    monkeypatch.setattr(nvrtc, "_missing", lambda: (None, (13, 0), (75, 80, 90, 100)))
    monkeypatch.setattr(bindings, "cuDriverGetVersion", lambda: (0, driver))
    found = sinkhorn._missing.__wrapped__(3)
    assert found is None if reason is None else re.search(reason, found or "")


@pytest.mark.parametrize(
    ("off", "raises", "reason"),
    [
        (1.0, None, None),
        (1.01, None, "its kernel gives wrong numbers."),
        (1.0, TypeError("no such launch"), "does not run: no such"),
    ],
)
def test_a_kernel_is_tried_before_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch, off: float, raises: Exception | None, reason: str | None
) -> None:
    tried = []

    def solve(matrix: Tensor, shift: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        tried.append(len(matrix))
        if raises is not None:
            raise raises
        return torch.ones(9), torch.ones(9), torch.full((9,), off / 9)

    monkeypatch.setattr(sinkhorn, "solve", solve)
    plan = Layout(9, True, CLUSTER, 2)
    if reason is None:
        assert sinkhorn._failure(plan, torch.device("cpu")) is None
    else:
        with pytest.warns(RuntimeWarning, match="solves the transport without CUDA C\\+\\+ on cpu: its kernel"):
            assert reason in (sinkhorn._failure(plan, torch.device("cpu")) or "")
    assert tried == [9]


def test_out_of_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(*arguments: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(sinkhorn, "solve", solve)
    with pytest.raises(torch.OutOfMemoryError):
        sinkhorn._failure(Layout(9, True, CLUSTER, 2), torch.device("cpu"))


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("n", [1, 2, 41, 130, 512, 520, 1000])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, n: int, clusters: bool) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    reason = sinkhorn.missing(device)
    if reason is not None:
        pytest.skip(reason)
    _, multiprocessors, shared_bytes, has_clusters = sinkhorn._chip(device.index)
    plan = sinkhorn.layout(n, multiprocessors, shared_bytes, clusters)
    if plan is None or plan.cluster != clusters or plan.cluster > has_clusters:
        pytest.skip("not a layout of this GPU")
    monkeypatch.setattr(sinkhorn, "_layout", lambda n, device: plan)
    for iterations in (0, 1, 5):
        logits, shift = make_logits(n, 75.0, n > 1), torch.tensor(75.0)
        matrices = [logits.to(device) for _ in range(2)]
        first, again = ((matrix, *sinkhorn.solve(matrix, shift.to(device), iterations)) for matrix in matrices)
        wanted = expected(logits, shift, iterations)
        found = (first[0].cpu(), first[1].cpu(), first[2].cpu(), first[3].cpu())
        assert worst(found, wanted) <= 1e-5
        assert relative(found[0], wanted[0]) <= 1e-6
        assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_in_a_cuda_graph() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    reason = sinkhorn.missing(device)
    if reason is not None:
        pytest.skip(reason)
    logits, shift = make_logits(130, 5.0, True).to(device), torch.tensor(5.0, device=device)
    wanted = sinkhorn.solve(logits.clone(), shift, 5)
    matrix, graph = logits.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = sinkhorn.solve(matrix, shift, 5)
    for _ in range(2):
        matrix.copy_(logits)
        graph.replay()
        assert all(torch.equal(one, same) for one, same in zip(found, wanted, strict=True))
