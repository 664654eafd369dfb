"""The GPU benchmark's machinery, on the CPU at tiny sizes: its numbers mean nothing here."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import markdown
from benchmarks.batch import Batch, Problems
from benchmarks.kernels import declared
from benchmarks.measure import Timing
from benchmarks.roofline.work import LOSSES
from benchmarks.speed import accuracy, attempts, gpu, lineup, plan, profiles, rivals, training_step
from benchmarks.speed import bench as benching
from benchmarks.speed import report as tables
from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import eager_info_nce, of_eager, sinkhorn_loop
from benchmarks.speed.ledger import Key, Ledger, median
from benchmarks.speed.lineup import Contender
from benchmarks.speed.plan import Cell
from otter_losses import OTTERLoss, sinkhorn_knopp
from otter_losses.ops import memory, products
from tests.helpers.batches import make_batch, on_device
from tests.helpers.paths import ROOT


def bench(tmp_path: Path, seconds: float = 60, only: str = "") -> Bench:
    return Bench(Ledger(tmp_path / "gpu"), "cpu", time.time() + seconds, only, repetitions=1)


def statuses(ledger: Ledger) -> dict[str, str]:
    return {key.name: row["status"] for key, row in ledger.rows.items()}


def broken(batch: Batch) -> Callable[[], Tensor]:
    raise ValueError("not made")


PLAIN = Contender("plain", lambda batch: of_eager(batch, eager_info_nce), "info_nce")
BROKEN = Contender("broken", broken, "info_nce")


# ---- rows ----


@pytest.mark.parametrize("mode", plan.MODES)
@pytest.mark.parametrize("turns", [True, False])
def test_every_contender_gets_a_row_of_times(tmp_path: Path, mode: str, turns: bool) -> None:
    running = bench(tmp_path)
    running.timed(Cell("headline", 8, 4, mode), [PLAIN, BROKEN], turns)
    assert statuses(running.ledger) == {"plain": "ok", "broken": "failed: ValueError: not made"}
    row = running.ledger.rows[Key("losses", 8, 4, mode, "plain")]
    assert row["step"]["median_ms"] > 0
    assert row["forward"]["median_ms"] > 0
    assert json.loads(running.ledger.file.read_text())["rows"] == json.loads(json.dumps(list(running.ledger.rows.values())))


def test_a_contender_that_fails_after_its_first_run_is_a_row(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(batch: Batch) -> Callable[[], Tensor]:
        def value() -> Tensor:
            calls.append(1)
            if len(calls) > 2:
                raise torch.OutOfMemoryError("no more")
            return eager_info_nce(batch.x, batch.y, batch.scale)

        return value

    running = bench(tmp_path)
    running.timed(Cell("headline", 8, 4, "float32"), [Contender("late", make, "info_nce"), PLAIN], True)
    assert statuses(running.ledger) == {"late": "out of memory", "plain": "ok"}


def test_a_graph_s_time_stands_beside_the_clock_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a replay made up, and a device that calls itself CUDA where that alone is asked."""
    running = bench(tmp_path)
    batch = Batch(8, 4, "cpu")
    key = Key("losses", 8, 4, "float32", "plain")
    monkeypatch.setattr(benching, "time_graph", lambda run, repetitions, device: run() and Timing((2.0, 2.0, 3.0)))
    running.timed(Cell("headline", 8, 4, "float32"), [PLAIN], True)
    assert set(running.ledger.rows) == {key}
    waiting = {key: running._warm(PLAIN, batch, 8)}
    running.device = "cuda"
    monkeypatch.setattr(running, "tidy", lambda: None)
    monkeypatch.setattr(benching, "once", lambda run, device: 4.0)
    running.finish(waiting, False)
    graph = running.ledger.rows[key._replace(group="losses, graph")]
    assert median(graph) == 2.0
    assert median(running.ledger.rows[key]) == 4.0
    (line,) = (line for line in tables.report(running.ledger).splitlines() if line.startswith("| 8 | plain"))
    assert "| 4 (0%) | 2 (25%) |" in line
    assert running._graph(key._replace(pairs=65536), lambda: pytest.fail("too large for a graph"))


def test_a_failed_capture_ends_the_process_when_the_others_have_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the allocator without a way to free."""

    def replayed(run: Callable[[], object], repetitions: int, device: str) -> Timing:
        if run is fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return Timing((1.0,))

    def fails() -> None: ...

    running = bench(tmp_path)
    running.device = "cuda"
    monkeypatch.setattr(running, "tidy", lambda: None)
    monkeypatch.setattr(benching, "time_graph", replayed)
    keys = [Key("losses", 8, 4, "float32", name) for name in ("fails", "works", "syncs")]
    runs: list[Callable[[], object]] = [fails, lambda: None, lambda: None]
    waiting = {key: benching.Warm({"step": run}, {}, {}, graph=key.name != "syncs") for key, run in zip(keys, runs, strict=True)}
    with pytest.raises(SystemExit) as ended:
        running.finish(waiting, False)
    assert ended.value.code == attempts.RESTART
    graphs = {row["name"]: row["status"] for row in running.ledger.of("losses, graph")}
    assert graphs.pop("fails").startswith("failed: RuntimeError: operation not permitted")
    assert graphs == {"works": "ok"}


def test_what_the_budget_does_not_reach_says_so(tmp_path: Path) -> None:
    running = bench(tmp_path, seconds=-1)
    running.run(Cell("headline", 8, 4, "float32"))
    running.run(Cell("accuracy", 8, 4, "float32"))
    assert set(statuses(running.ledger).values()) == {"not reached"}
    assert "not reached" in tables.report(running.ledger)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (rivals.Missing("not installed: pip install it"), "not installed: pip install it"),
        (RuntimeError("backend='cuda' is not there"), "not available: backend='cuda' is not there"),
        (RuntimeError("CUDA error:\nillegal address"), "failed: RuntimeError: CUDA error: illegal address"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    ],
)
def test_reasons_are_told_in_one_line(error: Exception, text: str) -> None:
    assert attempts.reason(error) == text


def test_a_missing_package_names_what_to_install() -> None:
    if find_spec("memeff") is not None:
        pytest.skip("memeff is installed")
    with pytest.raises(rivals.Missing, match=r"not installed: pip install --no-deps memeff==0\.3\.1"):
        rivals.memeff(Batch(4, 4, "cpu"))


# ---- a process that dies ----


def test_another_process_goes_on_where_one_died(tmp_path: Path) -> None:
    dead = bench(tmp_path)
    dead.timed(Cell("headline", 8, 4, "float32"), [PLAIN], True)
    key = Key("losses", 8, 4, "float32", "killer")
    dead.ledger.begin(key)
    ledger = Ledger.resume(tmp_path / "gpu")
    assert ledger.rows[key]["status"].startswith("failed: the process died")
    assert ledger.about["started"] == dead.ledger.about["started"]
    again = Bench(ledger, "cpu", time.time() + 60, repetitions=1)
    again.timed(Cell("headline", 8, 4, "float32"), [PLAIN, Contender("killer", broken, "info_nce"), BROKEN], True)
    assert ledger.rows[key]["status"].startswith("failed: the process died")
    assert statuses(ledger)["broken"] == "failed: ValueError: not made"


def test_the_supervisor_repeats_what_ends_badly(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"import pathlib, sys; p = pathlib.Path({str(count)!r}); n = len(p.read_text()) if p.exists() else 0; "
    script += "p.write_text('x' * (n + 1)); sys.exit(0 if n == 2 else 75)"
    assert gpu.supervise([sys.executable, "-c", script]) == 0
    assert count.read_text() == "xxx"
    assert gpu.supervise([sys.executable, "-c", "import sys; sys.exit(3)"], attempts=2) == 3


# ---- the whole run ----


def test_the_whole_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TARGETS", "ACCURACY", "PROFILED"):
        monkeypatch.setattr(plan, name, (16,))
    monkeypatch.setattr(plan, "SINKHORN", ((16, 3),))
    text = "--device cpu --pairs 16 --widths 8 --repetitions 1 --budget-seconds 60"
    only = "^(?!.*(compile|kernel|memeff|inf-cl|POT|flash))"
    options = gpu.arguments().parse_args([*text.split(), "--only", only, "--output", str(tmp_path)])
    ledger = Ledger(tmp_path / "gpu")
    gpu.work(ledger, options)
    assert {key.group for key in ledger.rows} == {"ceilings", "losses", "accuracy", "targets", "sinkhorn", "profile"}
    good = {key.name for key, row in ledger.rows.items() if key.group == "losses" and row["status"] == "ok"}
    assert {"eager ClipLoss", "released OTTER", "InfoNCELoss", "OTTERLoss", "SigLIPLoss", "OTTERLoss [torch]"} <= good
    assert {key.mode for key in ledger.rows if key.group == "losses"} == {"bfloat16", "autocast", "float32"}
    assert {row["name"] for row in ledger.of("accuracy") if row["status"] != "ok"} == {
        row["name"] for row in ledger.of("losses") if row["status"] != "ok"
    }
    assert {row["name"] for row in ledger.of("targets") if row["status"] == "ok"} == {
        "released targets",
        "otter_targets",
        "one N x N x 2D product",
    }
    report = tables.report(ledger)
    assert {row["name"] for row in ledger.of("sinkhorn")} == {"sinkhorn_knopp", "a loop"}
    for words in (
        "## What is asked for",
        "Ceilings measured in this run",
        "## bfloat16 features, D = 8",
        "## float32 features inside torch.autocast(bfloat16), D = 8",
        "## float32 features, D = 8",
        "## Targets alone",
        "## Transport alone",
        "## Where the time goes: OTTERLoss",
        "No number",
    ):
        assert words in report
    (*rows,) = (line for line in report.splitlines() if line.startswith("| 16 | OTTERLoss |"))
    assert len(rows) == 3
    assert {line.count("|") for line in rows} == {12}


def test_the_plan_starts_with_what_matters_and_names_each_cell_once() -> None:
    cells = plan.plan(list(plan.ORDER), [512, 768], list(plan.MODES))
    assert len(set(cells)) == len(cells)
    assert cells[:4] == [Cell("headline", n, 512, mode) for n in (4096, 16384) for mode in ("bfloat16", "autocast")]
    stages = list(dict.fromkeys((cell.stage, cell.width, cell.mode) for cell in cells if cell.stage != "sinkhorn"))
    assert stages[:6] == [
        ("headline", 512, "bfloat16"),
        ("headline", 512, "autocast"),
        ("targets", 512, "float32"),
        ("headline", 512, "float32"),
        ("torch", 512, "bfloat16"),
        ("accuracy", 512, "bfloat16"),
    ]
    headlines = [cell for cell in cells if cell.stage == "headline"]
    assert headlines[10:12] == [Cell("headline", 65536, 512, "bfloat16"), Cell("headline", 262144, 512, "bfloat16")]
    assert headlines[17] == Cell("headline", 65536, 768, "bfloat16")
    assert [cell.stage for cell in cells if cell.pairs == 262144] == ["headline", "others"]
    largest = [found.name for found in lineup.contenders(Cell("headline", 262144, 512, "bfloat16"))]
    assert largest == ["InfoNCELoss", "OTTERLoss", "SigLIPLoss"]
    assert "OTTERLoss, max_memory=0" in [found.name for found in lineup.contenders(Cell("others", 32768, 512, "bfloat16"))]


@pytest.mark.parametrize("mode", plan.MODES)
@pytest.mark.parametrize("pairs", plan.ORDER)
def test_names_are_unique_in_a_group_and_families_known(mode: str, pairs: int) -> None:
    cells = [cell for cell in plan.plan([pairs], [512], [mode]) if cell.group == "losses"]
    found = [contender for cell in cells for contender in lineup.contenders(cell)]
    assert len({contender.name for contender in found}) == len(found)
    assert {contender.family for contender in found} <= set(accuracy.ORACLES)
    assert {contender.floor for contender in found} <= {"", *LOSSES}


def test_under_autocast_everyone_gets_float32_features_and_multiplies_half_ones() -> None:
    cell = Cell("headline", 32, 16, "autocast")
    batch = cell.batch("cpu")
    assert isinstance(batch, Batch)
    assert batch.x.dtype == torch.float32
    assert batch.inside(lambda: batch.x @ batch.y.T)().dtype == torch.bfloat16
    eager = of_eager(batch, lambda x, y, scale: x @ y.T)()
    assert eager.dtype == torch.bfloat16
    plain = Cell("headline", 32, 16, "float32").batch("cpu")
    assert isinstance(plain, Batch)
    assert plain.inside(lambda: plain.x @ plain.y.T)().dtype == torch.float32


def test_the_loop_that_transport_is_held_against_computes_the_same() -> None:
    scores = Problems(12, 2, "cpu").scores
    torch.testing.assert_close(sinkhorn_loop(scores, 0.15, 7), sinkhorn_knopp(scores, 0.15, 7))


# ---- accuracy ----


@pytest.mark.parametrize(
    "name", ["InfoNCELoss", "OTTERLoss", "OTTERLoss, own teacher", "LabelSmoothingLoss", "DistillationLoss", "SigLIPLoss"]
)
def test_oracles_are_the_contenders_own(name: str) -> None:
    """In float32 the library's losses are their oracles, to rounding."""
    cells = Cell("headline", 12, 6, "float32"), Cell("others", 12, 6, "float32")
    contender = next(found for cell in cells for found in lineup.contenders(cell) if found.name == name)
    batch = Batch(12, 6, "cpu")
    found = accuracy.error(batch, contender.make(batch), contender.family)
    assert found["gradient_error"] < 1e-5
    assert 0 < found["rounding"] < 1e-7


def test_a_wrong_gradient_has_its_distance() -> None:
    truth = (torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert accuracy.distance((torch.zeros(2), torch.tensor([0.0, 4.0])), truth) == pytest.approx(3 / 5)
    assert accuracy.distance((None, truth[1], None), truth) == pytest.approx(3 / 5)


# ---- numbers ----


@pytest.mark.parametrize(
    ("low", "high", "text"), [(1.0, 1.0, "1"), (0.00123456, 2, "0.00123 - 2"), (1234.5, 1e6, "1,234 - 1,000,000")]
)
def test_spans_are_short(low: float, high: float, text: str) -> None:
    assert markdown.span(low, high) == text


# ---- profiles ----


def test_a_profile_knows_the_rate_of_products() -> None:
    a, b, out = torch.randn(32, 16), torch.randn(16, 8), torch.empty(32, 8)

    def run() -> object:
        torch.mm(a, b, out=out)
        return out.addmm_(a, b).exp()

    found = profiles.profiled(run, "cpu")
    assert {item["product"] for item in found["products"]} == {"32 x 16 @ 16 x 8"}
    for item in found["products"]:
        assert item["operations_per_s"] == pytest.approx(2 * 32 * 16 * 8 / item["ms"] * 1e3)
    assert found["launches"] >= 3
    assert found["kernels"][0]["share"] <= 1


def test_profiles_are_told_in_tables(tmp_path: Path) -> None:
    running = bench(tmp_path)
    running.each(Cell("profile", 8, 4, "float32"), [PLAIN], running._profile)
    report = tables.report(running.ledger)
    assert "## Where the time goes: plain, N = 8, float32 features, D = 4" in report
    assert "8 x 4 @ 4 x 8" in report


@pytest.mark.parametrize(
    ("kernel", "switches", "text"),
    [
        ("row_scalings", {}, "read K"),
        ("logits_gradient", {}, "read K and cosines, write G"),
        ("logits_gradient", {"soft": False}, "read cosines, write G"),
        ("logits_gradient", {"computed": True}, "read K, write G"),
        ("write_plans", {}, "read K, write K"),
        ("merge_sums", {}, ""),
    ],
)
def test_kernels_say_what_they_move(kernel: str, switches: dict[str, bool], text: str) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    assert declared.traffic(kernel, **switches) == text


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
@pytest.mark.parametrize(("dtype", "gradient"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_launches_say_how_many_bytes_kernels_move(dtype: torch.dtype, gradient: int) -> None:
    """Whatever blocks a sweep is cut into: codes of K are 2 bytes, a gradient in one plane of float16 too, in two planes 4."""
    pytest.importorskip("triton", reason="triton is there on Linux only")
    n = 272
    batch = on_device(make_batch(n, 16)).to(dtype)
    with (
        memory.limits(device_gradient_elements=1 << 15, device_gradient_rows=128, device_pass_elements=1 << 15, codes_from=0),
        declared.bytes_moved() as moved,
    ):
        value = OTTERLoss(iterations=3, backend="triton")(batch.x, batch.y, batch.scale)
        assert isinstance(value, Tensor)
        batch.gradients(value)
    stored = 2 if dtype in products.HALVES else 4
    assert moved["encode"] == n * n * stored
    assert moved["row_scalings"] == moved["column_sums"] == 3 * n * n * stored
    assert moved["statistics"] == n * n * stored
    assert moved["logits_gradient"] == n * n * (stored + gradient)
    assert moved["merge_statistics"] == 0


# ---- commands ----


@pytest.mark.parametrize("arguments", [gpu.arguments, training_step.arguments])
def test_a_benchmark_of_a_device_that_is_not_there_says_so(
    arguments: Callable[[], argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs or is written; another device is asked for by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        arguments().parse_args([])
    assert "the device is cuda; need one that torch sees" in capsys.readouterr().err
    assert arguments().parse_args(["--device", "cpu"]).device == "cpu"


# ---- the shell command ----


@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        ("", ["pytest", "benchmarks.gpu", "benchmarks.training_step", "benchmarks.kernels"]),
        ("open_clip", ["pytest", "benchmarks.gpu", "benchmarks.kernels"]),
    ],
)
def test_a_failing_test_run_does_not_stop_the_benchmark(tmp_path: Path, absent: str, modules: list[str]) -> None:
    """With a python that only notes what it is asked for, fails at the tests, and has all packages but one."""
    fake = tmp_path / "python"
    fails = '[ "$2" != pytest ] || exit 4', f'[ "$2" != "import {absent}" ] || exit 1'
    fake.write_text("\n".join(("#!/usr/bin/env bash", f'echo "$*" >>{tmp_path}/calls', *fails, "")))
    fake.chmod(0o755)
    script = ROOT / "benchmarks" / "gpu.sh"
    environment: dict[str, Any] = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), str(tmp_path / "out")], env=environment, check=False)
    assert done.returncode == 4
    assert [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("-m")] == modules


def test_a_part_that_takes_too_long_is_ended_and_the_others_run(tmp_path: Path) -> None:
    """With a python whose tests never end, and a `timeout` that is not patient."""
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/calls\n[ "$2" != pytest ] || sleep 60\n')
    (tmp_path / "timeout").write_text(f'#!/usr/bin/env bash\nexec {shutil.which("timeout")} 0.5 "${{@:4}}"\n')
    for name in ("python", "timeout"):
        (tmp_path / name).chmod(0o755)
    environment: dict[str, Any] = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path)], env=environment, check=False)
    assert done.returncode == 124
    assert "-m benchmarks.kernels" in (tmp_path / "calls").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read on Linux")
@pytest.mark.parametrize(("epsilon", "matrices"), [(0.15, 3), (0.005, 5)])
def test_a_peak_counts_what_lives_and_not_what_was_freed(epsilon: float, matrices: int) -> None:
    """Also where this process has held more before."""
    from benchmarks import sinkhorn_gradient

    sinkhorn_gradient.run_of("autograd", 1500, 4, epsilon)()
    assert sinkhorn_gradient.lone_peak("analytic", 1500, 4, epsilon) == pytest.approx(matrices, abs=0.3)


def test_gradients_of_sinkhorn_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import sinkhorn_gradient

    monkeypatch.setattr(sinkhorn_gradient, "CASES", ((12, 3, 0.15), (9, 2, 0.01)))
    monkeypatch.setattr(sinkhorn_gradient, "LEAST_PEAK", 12)
    monkeypatch.setattr("sys.argv", ["", "--repetitions", "2", "--output", str(tmp_path / "found")])
    threads = torch.get_num_threads()
    try:
        sinkhorn_gradient.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["size"], row["rounds"], "matrices" in row["analytic"]) for row in rows] == [(12, 3, True), (9, 2, False)]
    assert all(0 < row["difference"] <= 1e-3 for row in rows)
    assert "| 12 | 3 | 0.15 |" in (tmp_path / "found.md").read_text()


def test_the_options_are_timed_beside_the_loss_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import options

    asked = ["options", "--pairs", "12", "--width", "8", "--repetitions", "1", "--output", str(tmp_path / "options")]
    monkeypatch.setattr(sys, "argv", asked)
    options.main()
    rows = json.loads((tmp_path / "options.json").read_text())["rows"]
    of = {(row["loss"], row["options"]): row for row in rows}
    assert {loss for loss, _ in of} == set(options.LOSSES)
    assert len(rows) == 3 + 4 + 3 + 4 + 2
    for (loss, _), row in of.items():
        assert row["ratio"] == pytest.approx(row["median_ms"] / of[loss, ""]["median_ms"])
        assert row["to_baseline"] == pytest.approx(row["median_ms"] / of["InfoNCELoss", ""]["median_ms"])
