"""The Triton kernels compiled for real GPUs, without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels import declared
from benchmarks.kernels.builds import AMD, ARCHITECTURES
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
        assert {build["architecture"] for build in triton if build["kernel"] == kernel} == set(ARCHITECTURES)
    for build in builds:
        odd, computed = ("odd" in build["switches"].split(), "computed" in build["switches"].split())
        is_amd = build["architecture"] in AMD
        assert build["local_bytes"] == 0, build
        assert build["stack_bytes"] <= (16 if odd or build["architecture"] == 100 else 0), build
        sweeps = build["kernel"] in ("row_scalings", "column_sums", "matching_round")
        assert 0 < build["registers"] <= (255 if odd or computed or sweeps else 128), build
        # 64 KiB is what a workgroup may have on AMD, 99 KiB what a block may on sm_86 and sm_89.
        most = (64 if is_amd else 99) if computed or sweeps else 9
        assert build["shared_bytes"] <= most << 10, build
    computing = {build["architecture"] for build in triton if "computed" in build["switches"].split()}
    assert computing == set(ARCHITECTURES) - {70}
