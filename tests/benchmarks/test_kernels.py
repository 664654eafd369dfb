"""What is recorded of launches, and what is read from compiled kernels."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels import amdgcn, launches
from tests.helpers.paths import ROOT

ASSEMBLY = """
    .agpr_count:     0
    .group_segment_fixed_size: 16384
    .private_segment_fixed_size: 24
    .sgpr_spill_count: 7
    .vgpr_count:     204
    .vgpr_spill_count: 3
"""


def test_resources_are_read_from_amd_s_assembly() -> None:
    assert amdgcn.resources(ASSEMBLY) == {"REG": 204, "STACK": 24, "SHARED": 16384, "LOCAL": 12}


def test_assembly_without_metadata_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no \.vgpr_spill_count; need the metadata"):
        amdgcn.resources(ASSEMBLY.replace("vgpr_spill_count", "sgpr_count"))


def compiled(script: str, cache: Path) -> Any:
    """What a script prints that may compile: importing `tests` would have Triton interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout)


def test_tensor_descriptors_are_recorded_and_compiled_for_hopper(tmp_path: Path) -> None:
    pytest.importorskip("triton.tools.tensor_descriptor", reason="triton is there on Linux only, descriptors in newer ones")
    from tests.helpers import described

    launch = described.recorded()
    assert dict(launch.signature)["left"] == "tensordesc<bf16[BM, BK]>"
    assert [choice.types["right"] for choice in launch.choices()] == ["tensordesc<bf16[64, 32]>", "tensordesc<bf16[128, 32]>"]
    assert launch.switches == "described bf16"
    script = "import described, json; from benchmarks.kernels.builds import build; "
    script += "print(json.dumps([build(each, 90) for each in described.recorded().choices()]))"
    for row in compiled(script, tmp_path):
        assert row["local_bytes"] == row["stack_bytes"] == 0 < row["registers"]


def test_every_tile_is_launched_once_and_the_tuner_comes_back() -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    from otter_losses.ops.triton import autotune

    sigmoid = importlib.import_module("otter_losses.ops.triton.sigmoid")
    extra, seen = [False], []

    def run(tile: dict[str, int]) -> None:
        seen.append((tile["BM"], extra[0]))

    tiles = [{"BM": 16}, {"BM": 32}, {"BM": 64}]
    with launches.every_tile(extra):
        run(sigmoid.fastest("a kernel", torch.zeros(2), (2, 2), tiles, run))
        assert sigmoid.fastest("in place", torch.zeros(2), (2, 2), tiles, None) == {"BM": 16}
    assert seen == [(32, True), (64, True), (16, False)]
    assert sigmoid.fastest is autotune.fastest


def test_a_descriptor_s_side_that_two_of_the_tile_s_fit_stays_a_number() -> None:
    pytest.importorskip("triton.tools.tensor_descriptor", reason="triton is there on Linux only, descriptors in newer ones")
    from benchmarks.kernels.builds import architectures
    from tests.helpers import described

    square = {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    launch = described.recorded((square, *described.TILES))
    assert launch.types["left"] == "tensordesc<bf16[64, 32]>" == dict(launch.signature)["left"].replace("BK", "32")
    assert launch.choices() == [launch]
    assert architectures(launch) == (90, 100)
