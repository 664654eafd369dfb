"""Data and a run that the tests of training share."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.reproduction.prepare import make_synthetic
from benchmarks.reproduction.train import train

from .runs import ALONE, STEPS, final, finished, in_process, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("pairs") / "data"
    make_synthetic(folder, STEPS // 2 * 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last state of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finished(in_process(train, tiny(), data, folder, ALONE)) == [0]
    return final(folder)
