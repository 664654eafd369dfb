"""The Triton kernels compiled for real GPUs, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels import declared
from tests.helpers.paths import ROOT

pytest.importorskip("triton", reason="triton is there on Linux only")


def test_every_kernel_compiles_for_every_gpu_without_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "benchmarks.kernels", "--output", str(tmp_path / "kernels")]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
    builds = json.loads((tmp_path / "kernels.json").read_text())["builds"]
    triton = [build for build in builds if build["kernel"] != "sinkhorn"]
    assert {build["kernel"] for build in triton} == set(declared.names())
    for kernel in declared.names():
        assert {build["architecture"] for build in triton if build["kernel"] == kernel} == {70, 80, 90, 100}
    for build in builds:
        odd, computed = ("odd" in build["switches"].split(), "computed" in build["switches"].split())
        assert build["local_bytes"] == 0, build
        assert build["stack_bytes"] <= (16 if odd else 0), build
        assert 0 < build["registers"] <= (255 if odd or computed else 128), build
        assert build["shared_bytes"] <= ((99 if computed else 9) << 10), (
            build
        )  # 99 KiB is what a block may have on sm_86 and sm_89
    assert {build["architecture"] for build in triton if "computed" in build["switches"].split()} == {80, 90, 100}
