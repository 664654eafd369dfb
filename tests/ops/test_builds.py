"""The Triton kernels compiled for real GPUs, without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

pytest.importorskip("triton", reason="triton is there on Linux only")


def test_every_kernel_compiles_for_every_gpu_without_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "benchmarks.kernels", "--output", str(tmp_path / "kernels")]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
    builds = json.loads((tmp_path / "kernels.json").read_text())["builds"]
    triton = [build for build in builds if build["kernel"] != "transport"]
    kernels = ROOT / "otter_losses/ops/triton/kernels"
    written = set(re.findall(r"^def (\w+)\(", "".join(path.read_text() for path in kernels.glob("*.py")), re.MULTILINE))
    helpers = {"apart", "code_of", "decoded", "held", "log_sum", "logits", "merged", "nearest", "_plan", "_unlikely"}
    assert {build["kernel"] for build in triton} == written - helpers
    for kernel in written - helpers:
        assert {build["architecture"] for build in triton if build["kernel"] == kernel} == {70, 80, 90, 100}
    for build in builds:
        odd = "odd" in build["switches"]
        assert build["local_bytes"] == 0, build
        assert build["stack_bytes"] <= (16 if odd else 0), build
        assert 0 < build["registers"] <= (255 if odd else 128), build
        assert build["shared_bytes"] <= 8 << 10, build
