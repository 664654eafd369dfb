"""The GPU benchmark's machinery, on the CPU at tiny sizes: its numbers mean nothing here."""

import argparse
import json
import os
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
from benchmarks.batch import Batch
from benchmarks.kernels import declared
from benchmarks.roofline import floors
from benchmarks.roofline.chips import H100, Chip
from benchmarks.roofline.work import LOSSES, Work
from benchmarks.speed import accuracy, attempts, gpu, lineup, profiles, rivals
from benchmarks.speed import report as tables
from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import eager_info_nce, of_eager
from benchmarks.speed.ledger import Key, Ledger
from benchmarks.speed.lineup import Cell, Contender
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("turns", [True, False])
def test_every_contender_gets_a_row_of_times(tmp_path: Path, dtype: str, turns: bool) -> None:
    running = bench(tmp_path)
    running.timed(Cell("losses", 8, 4, dtype), [PLAIN, BROKEN], turns)
    assert statuses(running.ledger) == {"plain": "ok", "broken": "failed: ValueError: not made"}
    row = running.ledger.rows[Key("losses", 8, 4, dtype, "plain")]
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
    running.timed(Cell("losses", 8, 4, "float32"), [Contender("late", make, "info_nce"), PLAIN], True)
    assert statuses(running.ledger) == {"late": "out of memory", "plain": "ok"}


def test_what_the_budget_does_not_reach_says_so(tmp_path: Path) -> None:
    running = bench(tmp_path, seconds=-1)
    running.run(Cell("losses", 8, 4, "float32"))
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
    dead.timed(Cell("losses", 8, 4, "float32"), [PLAIN], True)
    key = Key("losses", 8, 4, "float32", "killer")
    dead.ledger.begin(key)
    ledger = Ledger.resume(tmp_path / "gpu")
    assert ledger.rows[key]["status"].startswith("failed: the process died")
    assert ledger.about["started"] == dead.ledger.about["started"]
    again = Bench(ledger, "cpu", time.time() + 60, repetitions=1)
    again.timed(Cell("losses", 8, 4, "float32"), [PLAIN, Contender("killer", broken, "info_nce"), BROKEN], True)
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
        monkeypatch.setattr(lineup, name, (16,))
    text = "--device cpu --pairs 16 --widths 8 --repetitions 1 --budget-seconds 60"
    only = "^(?!.*(triton|compile|kernel|memeff|inf-cl|POT|flash))"
    options = gpu.arguments().parse_args([*text.split(), "--only", only, "--output", str(tmp_path)])
    ledger = Ledger(tmp_path / "gpu")
    gpu.work(ledger, options)
    assert {key.group for key in ledger.rows} == {"ceilings", "losses", "accuracy", "graph", "targets"}
    good = {key.name for key, row in ledger.rows.items() if key.group == "losses" and row["status"] == "ok"}
    assert {"eager ClipLoss", "released OTTER", "InfoNCELoss [torch]", "OTTERLoss [torch]", "SigLIPLoss [torch]"} <= good
    assert {row["name"] for row in ledger.of("accuracy") if row["status"] != "ok"} == {
        row["name"] for row in ledger.of("losses") if row["status"] != "ok"
    }
    assert {row["name"] for row in ledger.of("targets") if row["status"] == "ok"} == {
        "released targets",
        "otter_targets",
        "one N x N x 2D product",
    }
    report = tables.report(ledger)
    for words in ("Ceilings measured in this run", "## bfloat16, D = 8", "## float32, D = 8", "## Targets alone", "No number"):
        assert words in report
    for line in report.splitlines():
        if line.startswith("| 16 | OTTERLoss [torch] |"):
            assert line.count("|") == 12
            break
    else:
        pytest.fail("no row of OTTERLoss")


def test_the_plan_starts_with_what_matters_and_names_each_cell_once() -> None:
    cells = lineup.plan(list(lineup.ORDER), [512, 768], ["bfloat16", "float32"])
    assert len(set(cells)) == len(cells)
    losses = [cell for cell in cells if cell.stage == "losses"]
    assert [cell.pairs for cell in losses[:7]] == [4096, 16384, 512, 1024, 32768, 65536, 262144]
    assert {(cell.width, cell.dtype) for cell in losses[:7]} == {(512, "bfloat16")}
    assert {(cell.width, cell.dtype) for cell in losses[7:13]} == {(512, "float32")}
    assert losses[13] == Cell("losses", 65536, 768, "bfloat16")
    assert [cell for cell in losses if cell.pairs == 262144] == [Cell("losses", 262144, 512, "bfloat16")]
    largest = [found.name for found in lineup.losses(Cell("losses", 262144, 512, "bfloat16"))]
    assert largest == ["InfoNCELoss [triton]", "OTTERLoss [triton]", "SigLIPLoss [triton]"]
    assert "OTTERLoss [triton], max_memory=0" in [found.name for found in lineup.losses(Cell("losses", 32768, 512, "bfloat16"))]


@pytest.mark.parametrize("cell", [Cell("losses", n, 512, dtype) for n in lineup.ORDER for dtype in lineup.DTYPES])
def test_names_are_unique_in_a_cell_and_families_known(cell: Cell) -> None:
    found = lineup.losses(cell)
    assert len({contender.name for contender in found}) == len(found)
    assert {contender.family for contender in found} <= set(accuracy.ORACLES)
    assert {contender.floor for contender in found} <= {"", *LOSSES}


# ---- accuracy ----


@pytest.mark.parametrize(
    "name", ["InfoNCELoss", "OTTERLoss", "OTTERLoss, own teacher", "LabelSmoothingLoss", "DistillationLoss", "SigLIPLoss"]
)
def test_oracles_are_the_contenders_own(name: str) -> None:
    """In float32 the library's losses are their oracles, to rounding."""
    contender = next(c for c in lineup.losses(Cell("losses", 12, 6, "float32")) if c.name == f"{name} [torch]")
    batch = Batch(12, 6, "cpu")
    found = accuracy.error(batch, contender.make(batch), contender.family)
    assert found["gradient_error"] < 1e-5
    assert 0 < found["rounding"] < 1e-7


def test_a_wrong_gradient_has_its_distance() -> None:
    truth = (torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert accuracy.distance((torch.zeros(2), torch.tensor([0.0, 4.0])), truth) == pytest.approx(3 / 5)
    assert accuracy.distance((None, truth[1], None), truth) == pytest.approx(3 / 5)


# ---- floors ----


def test_floors_at_a_point_counted_by_hand() -> None:
    """N = 1,000, D = 100, half precision, products stored: one is 0.2 GFLOP over 0.4 MB of features, its block 4 MB."""
    work = Work(1000, 100, half=True, computes=False)
    steps = work.steps("InfoNCE")
    assert sum(step.operations for step in steps) == 4 * 0.2e9
    assert sum(step.block for step in steps) == 16e6
    assert sum(step.bytes for step in steps) == 4 * 0.4e6 + 2e6 + 2 * 2e6
    slow_memory = Chip("", bandwidth=1e9, half=1e15, single=1e15, computes_tiles=False)
    assert work.milliseconds("InfoNCE", slow_memory, cached=True) == pytest.approx(7.6)
    assert work.milliseconds("InfoNCE", slow_memory, cached=False) == pytest.approx(23.6)
    slow_products = Chip("", bandwidth=1e15, half=1e9, single=1e9, computes_tiles=False)
    assert work.milliseconds("InfoNCE", slow_products, cached=True) == pytest.approx(800, rel=1e-3)
    otter = work.steps("OTTER")
    assert sum(step.operations for step in otter) == 6 * 0.2e9
    assert sum(step.bytes for step in otter) == 6 * 0.4e6 + (2 + 5 * 4 + 2 + 4 + 4) * 1e6


def test_products_that_kernels_compute_are_not_written() -> None:
    stored, computed = Work(1000, 100, half=True, computes=False), Work(1000, 100, half=True)
    for loss in ("InfoNCE", "OTTER", "SigLIP"):
        assert sum(step.operations for step in computed.steps(loss)) == sum(step.operations for step in stored.steps(loss))
        assert sum(step.bytes for step in computed.steps(loss)) == sum(step.bytes for step in stored.steps(loss))
        assert sum(step.block for step in computed.steps(loss)) == 0
    # One step of a product and of what reads it takes the longer of their times, not both.
    even = Chip("", bandwidth=1e9, half=0.2e9 / 2.4e-3, single=1e9)
    assert computed.milliseconds("InfoNCE", even, cached=False) == pytest.approx(2.4 + 3 * 2.4, rel=1e-3)


def test_a_kernel_beyond_max_memory_is_computed_eight_times() -> None:
    kept, again = Work(1000, 100, True), Work(1000, 100, True, max_memory=0)
    assert kept.stores_kernel()
    assert not again.stores_kernel()
    more = sum(step.operations for step in again.otter()) - sum(step.operations for step in kept.otter())
    assert more == 7 * 2 * 0.2e9


def test_floors_of_float32_before_ampere_grow_with_what_is_kept() -> None:
    work = Work(1000, 100, half=False, computes=False)
    steps = work.steps("OTTER")
    assert sum(step.block for step in steps) == 0
    assert sum(step.bytes for step in steps) == 6 * 2 * 0.4e6 - 2 * 0.4e6 + (4 + 8 + 40 + 4 + 8 + 12 + 8) * 1e6
    assert sum(step.single for step in steps) == 5 * 0.2e9
    assert sum(step.operations for step in steps) == 0


def test_float32_is_three_products_of_half_precision_and_writes_none_of_them() -> None:
    for loss, products, walked in (("InfoNCE", 4, 4 + 2 * 4), ("SigLIP", 3, 4 + 2 * 4), ("OTTER", 6, 4 + 40 + 4 + 8 + 2 * 4)):
        steps = Work(1000, 100, half=False).steps(loss)
        assert sum(step.operations for step in steps) == 3 * products * 0.2e9
        assert sum(step.single for step in steps) == 0
        assert sum(step.bytes for step in steps) == products * 0.8e6 + walked * 1e6
        assert sum(step.block for step in steps) == 0
    eager = Work(1000, 100, half=False).steps("eager ClipLoss")
    assert sum(step.single for step in eager) == 6 * 0.2e9
    assert sum(step.operations for step in eager) == 0


def test_what_a_kernel_does_beside_its_product_takes_time_too() -> None:
    """N = 1,000, D = 100 on a chip of 1 ps an entry and infinite rates: two walks over the logits, and two over K beside them."""
    chip = Chip("", bandwidth=1e30, half=1e30, single=1e30, epilogue=1e-12)
    work = Work(1000, 100, half=True)
    found = {loss: work.milliseconds(loss, chip, cached=True) for loss in LOSSES}
    assert found == pytest.approx({"InfoNCE": 2e-3, "OTTER": 5e-3, "SigLIP": 1e-3, "eager ClipLoss": 0})


@pytest.mark.parametrize(("wide", "rate"), [(1, 433e12), (2, 540e12)])
def test_the_measured_chip_has_the_rates_of_the_fused_prototypes(wide: int, rate: float) -> None:
    (step,) = Work(32768, 512, half=True).read("product", "reduction", wide=wide)
    assert step.operations / step.seconds(H100, cached=True) == pytest.approx(rate, rel=0.03)


def test_the_floors_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = floors.rows([512, 262144], 512)
    assert len(found) == 2 * 2 * len(LOSSES)
    lines = floors.table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert len({line.count("|") for line in lines}) == 1
    assert any("OTTER, K recomputed" in line for line in lines)


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

    found = profiles.profiled(run, "cpu", torch.randn(32, 16))
    assert {item["product"] for item in found["products"]} == {"32 x 16 @ 16 x 8"}
    for item in found["products"]:
        assert item["operations_per_s"] == pytest.approx(2 * 32 * 16 * 8 / item["ms"] * 1e3)
    assert found["launches"] >= 3
    assert found["kernels"][0]["share"] <= 1


def test_profiles_are_told_in_tables(tmp_path: Path) -> None:
    running = bench(tmp_path)
    running.each(Cell("profile", 8, 4, "float32"), [PLAIN], running._profile)
    report = tables.report(running.ledger)
    assert "## Where the time goes: plain, N = 8, float32, D = 4" in report
    assert "8 x 4 @ 4 x 8" in report


@pytest.mark.parametrize(
    ("kernel", "switches", "text", "itemsize", "each"),
    [
        ("row_scalings", {}, "read K", 2, 2),
        ("_logits_gradient_0d1d", {}, "read K and cosines, write G", 4, 12),
        ("logits_gradient", {"soft": False}, "read cosines, write G", 4, 8),
        ("logits_gradient", {"computed": True}, "read K, write G", 2, 4),
        ("ampere_bf16_s16816gemm", {}, "", 2, 0),
    ],
)
def test_kernels_say_what_they_move(kernel: str, switches: dict[str, bool], text: str, itemsize: int, each: int) -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    assert declared.traffic(kernel, **switches) == text
    reads, writes = declared.matrices(kernel, **switches)
    assert profiles.bytes_per_entry((*reads, *writes), itemsize) == each


# ---- the shell command ----


def test_a_failing_test_run_does_not_stop_the_benchmark(tmp_path: Path) -> None:
    """With a python that only notes what it is asked for, and fails at the tests."""
    fake = tmp_path / "python"
    fake.write_text(f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/calls\n[ "$2" != pytest ] || exit 4\n')
    fake.chmod(0o755)
    script = ROOT / "benchmarks" / "gpu.sh"
    environment: dict[str, Any] = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), str(tmp_path / "out")], env=environment, check=False)
    assert done.returncode == 4
    modules = [line.split()[1] for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("-m")]
    assert modules == ["pytest", "benchmarks.gpu", "benchmarks.kernels"]


def test_options_have_the_sizes_asked_for() -> None:
    options: argparse.Namespace = gpu.arguments().parse_args([])
    assert sorted(options.pairs) == [512, 1024, 4096, 16384, 32768, 65536, 262144]
    assert options.widths == [512, 768]
    assert options.dtypes == ["bfloat16", "float32"]
