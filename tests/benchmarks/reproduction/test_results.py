"""Result files and their table, which holds nothing but what was run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reproduction import config, results, table

from .files import write


def a_result(
    label: str = "OTTER",
    seed: int = 0,
    benchmark: str = "goi",
    value: float = 10.0,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """As evaluate writes them; `settings` by full name, `changes` of the result's parts."""
    tables = config.load([{"OTTER": "otter", "InfoNCE": "info_nce"}[label]]).as_dict()
    for key, setting in {"train.seed": seed, **(settings or {})}.items():
        tables[key.split(".")[0]][key.split(".")[1]] = setting
    model = {"checkpoint": "00056870.pt", "sha256": f"{seed}" * 64, "weights": "model", "step": 56_870, "pairs": 2_911_810}
    asked = {"name": benchmark, "classes_sha256": "a", "templates": ["a photo of {}."], "constant": {"hit@1": 1.5}}
    return {
        "benchmark": asked | changes.get("asked", {}),
        "scores": {"hit@1": value, "hit@2": 2 * value},
        "pictures": {"scored": 100, "missing": 0, "bad": 0} | changes.get("pictures", {}),
        "model": model | {"config": tables} | changes.get("model", {}),
        "versions": {},
    }


def saved(folder: Path, *found: dict[str, Any]) -> list[table.Result]:
    for number, result in enumerate(found):
        results.write(folder / f"{number}.json", result)
    return table.read_all([folder])


def rows_of(report: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_the_papers_numbers_stand_beside_empty_cells() -> None:
    rows = rows_of(report := table.report([]))
    assert rows["InfoNCE", "paper"] == ["26.8", "55.1", "66.4", "10.9", "29.4", "40.5"]
    assert rows["label smoothing", "paper"] == ["26.3", "55.9", "67.5", "10.1", "29.6", "39.8"]
    assert rows["KD", "paper"] == ["26.7", "55.3", "67.1", "10.0", "27.5", "38.5"]
    assert rows["OTTER", "paper"] == ["29.1", "59.6", "70.9", "12.0", "31.8", "42.1"]
    assert [cells for (_, who), cells in rows.items() if who == "ours"] == [[""] * 6] * 5
    assert report.endswith("Nothing was run.")


def test_ours_are_means_and_deviations_of_what_was_run(tmp_path: Path) -> None:
    found = saved(
        tmp_path,
        a_result(seed=0, value=10),
        a_result(seed=1, value=11),
        a_result(seed=2, value=15),
        a_result("InfoNCE", value=9),
        a_result(benchmark="in10k-leaves", value=3),
    )
    rows = rows_of(report := table.report(found))
    assert rows["OTTER", "ours"] == ["12.0 ± 2.6 (3)", "", "", "", "", ""]
    assert rows["InfoNCE", "ours"] == ["9.0", "", "", "", "", ""]
    assert rows["KD", "ours"] == [""] * 6
    assert rows["one answer for all", "ours"] == ["1.5", "", "", "", "", ""]
    assert rows["goi hit@2", "24.0 ± 5.3 (3)"] == ["18.0", ""]
    assert rows["in10k-leaves hit@1", "3.0"] == ["", "1.5"]
    assert "NOT the paper's setting" not in report
    assert "- OTTER, seed 2, goi: 100 pictures (0 missing, 0 unreadable left out); 00056870.pt (222222222222)" in report


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (a_result(seed=1, settings={"train.epochs": 20}), "trained differently: .* train.epochs is 10 and 20"),
        (a_result("InfoNCE", settings={"model.image": "fbnetc_100"}), "trained differently: .* model.image"),
        (a_result(seed=1, model={"step": 5}), "trained differently: .* step is 56870 and 5"),
        (a_result(seed=1, model={"weights": "teacher"}), "weights is 'model' and 'teacher'"),
        (a_result(seed=1, model={"pairs": 9}), "pairs is 2911810 and 9"),
        (a_result(seed=1, settings={"loss.options": {"alpha": 0.9}}), "two losses called 'OTTER': .* loss.options"),
        (a_result(seed=1, settings={"model.temperatures": 2}), "two losses called 'OTTER'"),
        (a_result("InfoNCE", asked={"classes_sha256": "b"}), "different questions called 'goi': .* classes_sha256"),
        (a_result(seed=1, asked={"templates": ["{}"]}), "different questions called 'goi': .* templates"),
        (a_result("InfoNCE", pictures={"scored": 99}), "different questions called 'goi': .* pictures is 100 and 99"),
        (a_result(seed=0, value=11.0), "are both OTTER, seed 0, on goi: leave one out"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table.report(saved(tmp_path, a_result(), other))


def test_what_changes_no_score_is_not_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, a_result(), a_result(seed=1, settings={"train.log_every": 1, "data.workers": 0}), a_result("InfoNCE"))
    assert "10.0 ± 0.0 (2)" in table.report(found)


def test_only_results_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no result file"):
        table.read_all([tmp_path])
    for text in ("{", "[]", '{"format": 1, "scores": {"hit@1": 99}}', json.dumps({**a_result(), "format": 0})):
        with pytest.raises(ValueError, match="result of"):
            table.read_all([write(tmp_path / "a.json", text)])
    foreign = a_result()
    del foreign["model"]["config"]
    with pytest.raises(ValueError, match="only checkpoints of train go into the table"):
        saved(tmp_path / "foreign", foreign)


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    results.write(path, a_result(value=10))
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(path, a_result(value=float("nan")))
    with pytest.raises(ValueError, match="a result needs versions"):
        results.write(path, {key: value for key, value in a_result().items() if key != "versions"})

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write(path, a_result(value=11))
    assert results.read(path)["scores"]["hit@1"] == 10
    assert list(tmp_path.iterdir()) == [path]
