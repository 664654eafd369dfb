"""The study of the temperature: held-out pairs are right, and its table joins what was measured with what was registered."""

from pathlib import Path

import pytest
import torch

from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run, make_model
from benchmarks.studies.temperature.report import STARTS, report
from benchmarks.studies.temperature.run import Checked, check, held_out_features


def test_held_out_pairs_are_one_picture_of_each_concept_and_its_name(collection: Collection) -> None:
    problem = build_problem(collection, CONDITIONS.values())
    model = make_model(problem, CONDITIONS["all"], Run("all", "InfoNCE", 0))
    with torch.inference_mode():
        x, y, sources = held_out_features(model, problem)
        place = 0
        for held_out in problem.validation.values():
            for label in dict.fromkeys(held_out.labels):
                row = min(row for row, of in zip(held_out.pictures, held_out.labels, strict=True) if of == label)
                own = model(torch.from_numpy(problem.images[row]), torch.from_numpy(held_out.names[label]))
                torch.testing.assert_close((x[place], y[place]), own[:2])
                assert sources[place] == problem.sources[row]
                place += 1
    assert len(x) == len(y) == place > 2


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_checked(collection: Collection, tmp_path: Path) -> None:
    problem = build_problem(collection, CONDITIONS.values())
    clean = check(problem, Run("all", "InfoNCE, scale 7", 0, epochs=3), tmp_path)
    assert clean.start == 7
    assert clean.trained == pytest.approx(7, rel=0.2)
    assert clean.best == clean.best_as_trained
    noisy = check(problem, Run("40 % shuffled", "InfoNCE", 0, epochs=3), tmp_path)
    assert noisy.start == pytest.approx(14.286, abs=1e-3)
    assert noisy.best != noisy.best_as_trained


def test_the_table_has_the_ratios_and_the_registered_differences() -> None:
    lower = STARTS[1]
    checked = [
        Checked(Run("all", method, seed), start, 20.0, best, 10.0)
        for method, start in (("InfoNCE", 14.3), (lower, 7.0))
        for seed, best in enumerate((10.0, 40.0))
    ]
    registered = {
        "scores": [{"setting": "all", "InfoNCE": 12.0, lower: 11.0}, {"setting": "all", "InfoNCE": 14.0, lower: 9.0}],
        "minus InfoNCE": {"all": {"OTTER": [-0.5, -1, 0.04], "GCE": [1, 0.5, 1.5], "RobustLoss": [2, 1, 3]}},
    }
    header, _, first, second, *_ = report(
        checked, registered, {"seeds": 2, "machine": dict.fromkeys(("device", "torch", "commit"))}
    ).split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, first, second)]
    assert len(cells[0]) == len(cells[1]) == len(cells[2])
    assert cells[1][1:9] == [
        "14.3",
        "20.0",
        "25.0",
        "1.25 (0.50 to 2.00)",
        "10.0",
        "2.00 (2.00 to 2.00)",
        "13.0",
        "-0.5 [-1.0, +0.0]",
    ]
    assert cells[2][7:] == ["10.0", "", "", ""]
