"""What is asked of speed, what is predicted, and how both stand beside what is measured."""

import json
from pathlib import Path

import pytest

from benchmarks.measure import RESULTS
from benchmarks.speed import asked, lineup, plan, predictions
from benchmarks.speed.aims import AIMS, Aim
from benchmarks.speed.ledger import Key, Ledger


def test_every_aim_is_about_rows_that_the_benchmark_has() -> None:
    cells = plan.plan(list(plan.ORDER), [512], list(plan.MODES))
    rows = {(cell.group, cell.pairs, cell.width, cell.mode, each.name) for cell in cells for each in lineup.contenders(cell)}
    for aim in AIMS:
        for pairs in aim.pairs:
            assert (aim.group, pairs, aim.width, aim.mode, aim.name) in rows
            if aim.against:
                assert (aim.group, pairs, aim.width, aim.against_mode or aim.mode, aim.against) in rows


def test_aims_are_told_apart_by_their_words() -> None:
    assert len({(aim.words, pairs) for aim in AIMS for pairs in aim.pairs}) == sum(len(aim.pairs) for aim in AIMS)
    assert all(aim.aim is None or aim.aim < aim.needed for aim in AIMS)


def test_the_committed_predictions_are_those_of_the_model_and_none_is_left_out() -> None:
    committed = json.loads((RESULTS / "predictions.json").read_text(encoding="utf-8"))
    assert committed == predictions.rows()
    assert all(row["derived"] > 0 for row in committed)


def test_small_batches_cost_the_host_and_large_ones_the_device() -> None:
    small = [predictions.counted("OTTERLoss", pairs, 512, "bfloat16") for pairs in (512, 1024)]
    assert small[0] is not None
    assert small[0] == small[1] == pytest.approx(0.5 + predictions.LAUNCHES["OTTER"] * 0.015)
    assert predictions.counted("OTTERLoss", 512, 512, "autocast") == pytest.approx(small[0] + 4 * 0.007)
    large = [predictions.counted("OTTERLoss", pairs, 512, mode) for pairs, mode in ((16384, "bfloat16"), (32768, "bfloat16"))]
    assert large[0] is not None
    assert large[1] == pytest.approx(4 * large[0], rel=0.01)
    casts = predictions.counted("OTTERLoss", 16384, 512, "autocast")
    assert casts == pytest.approx(large[0] + 1e3 * 24 * 16384 * 512 / 3.03e12)
    assert predictions.counted("memeff", 512, 512, "bfloat16") is None


def test_a_ratio_is_of_our_count_and_another_s_measurement() -> None:
    own = predictions.counted("InfoNCELoss", 8192, 512, "bfloat16")
    assert own is not None
    before = {(8192, 512, "bfloat16", "memeff"): 2 * own}
    assert predictions.predicted(Aim("InfoNCELoss", "memeff", (8192,), 1.0), 8192, before) == pytest.approx(0.5)
    assert predictions.predicted(Aim("InfoNCELoss", "memeff", (8192,), 1.0), 8192, {}) is None
    assert predictions.predicted(Aim("InfoNCELoss", "", (8192,), 1.0), 8192, {}) == own


def timing(ms: float) -> dict[str, object]:
    return {"median_ms": ms, "spread": 0.0, "milliseconds": [ms]}


def test_the_table_holds_what_came_against_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "gpu")
    ours, theirs = (Key("losses", 64, 512, "bfloat16", name) for name in ("OTTERLoss", "eager ClipLoss"))
    ledger.add(ours, step=timing(3.0), forward=timing(1.0))
    ledger.add(theirs, step=timing(4.0), forward=timing(1.0))
    ledger.add(ours._replace(group="losses, graph"), replay=timing(1.0))
    ledger.add(theirs._replace(group="losses, graph"), replay=timing(2.0))
    ledger.add(ours._replace(pairs=128), step=timing(3.0), forward=timing(1.0))
    ledger.add(theirs._replace(pairs=128), "out of memory")
    aims = [
        Aim("OTTERLoss", "eager ClipLoss", (64, 128), 0.9, 0.8),
        Aim("OTTERLoss", "eager ClipLoss", (64,), 0.8, 0.7),
        Aim("OTTERLoss", "eager ClipLoss", (64,), 0.7),
        Aim("OTTERLoss", "", (128,), 5.0),
    ]
    monkeypatch.setattr(asked, "AIMS", aims)
    monkeypatch.setattr(predictions, "committed", lambda: {("OTTERLoss, bfloat16 / eager ClipLoss", 64): 0.25})
    rows = [line for line in asked.table(ledger).splitlines() if line.startswith("| OTTER")]
    assert rows == [
        "| OTTERLoss, bfloat16 / eager ClipLoss | 64 | 0.9 | 0.8 | 0.25 | 0.75 | 0.5 | aim |",
        "| OTTERLoss, bfloat16 / eager ClipLoss | 128 | 0.9 | 0.8 |  |  |  |  |",
        "| OTTERLoss, bfloat16 / eager ClipLoss | 64 | 0.8 | 0.7 | 0.25 | 0.75 | 0.5 | needed |",
        "| OTTERLoss, bfloat16 / eager ClipLoss | 64 | 0.7 |  | 0.25 | 0.75 | 0.5 | missed |",
        "| OTTERLoss, bfloat16, ms | 128 | 5 |  |  | 3 |  | needed |",
    ]
