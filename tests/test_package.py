"""The package as it is installed."""

import re
import subprocess
import sys
from pathlib import Path

import otter_losses
from otter_losses.losses.registry import LOSSES

PACKAGE = Path(otter_losses.__file__).parent


def run(script: str) -> str:
    """Output of the script, both streams, in a fresh process in which every warning is an error."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def test_importing_prints_nothing() -> None:
    assert run("import torch; import otter_losses, otter_losses.functional, otter_losses.ops.reference") == ""


def test_importing_and_computing_pulls_in_nothing_optional() -> None:
    """Computing may make torch itself look for triton, importing may not."""
    script = """
import sys, torch
before = set(sys.modules)
import otter_losses
print(bool({"triton", "sympy"} & set(sys.modules)))
x = torch.nn.functional.normalize(torch.ones(3, 2), dim=1)
otter_losses.OTTERLoss()(x, x, 10.0)
otter_losses.sinkhorn_knopp(torch.zeros(2, 2))
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & {
    "scipy", "ot", "open_clip", "transformers", "cuda", "pandas", "torchvision", "lightning"}))
print("otter_losses.ops.triton.kernels" in sys.modules)
"""
    assert run(script).split() == ["False", "[]", "False"]


def test_importing_works_where_triton_cannot_be_imported() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch, otter_losses
x = torch.eye(3)
print(round(float(otter_losses.OTTERLoss(alpha=1)(x, x, 0.0)), 4))
"""
    assert run(script).strip() == "1.0986"


def test_public_names_are_there_and_documented() -> None:
    expected = {
        "DistillationLoss",
        "EMATeacher",
        "InfoNCELoss",
        "LabelSmoothingLoss",
        "OTTERLoss",
        "SigLIPLoss",
        "grad_cache",
        "sinkhorn_knopp",
    }
    assert expected <= set(otter_losses.__all__)
    for name in otter_losses.__all__:
        assert (getattr(otter_losses, name).__doc__ or "").strip(), name


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_version_is_the_one_that_is_built() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    static = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    source = re.findall(r'^\[tool\.hatch\.version\]\npath = "(.+)"$', project, re.MULTILINE)
    assert static == [otter_losses.__version__] or source == ["otter_losses/__init__.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", otter_losses.__version__)


def test_losses_have_no_state() -> None:
    for row in LOSSES.values():
        loss = row.module()
        assert list(loss.parameters()) == []
        assert loss.state_dict() == {}


WITHOUT_DISTRIBUTED = """
import torch, torch.distributed
for name in ("ReduceOp", "ProcessGroup", "group"):
    delattr(torch.distributed, name)
from otter_losses import OTTERLoss
print(OTTERLoss())
"""


def test_imports_with_a_torch_built_without_distributed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DISTRIBUTED], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("OTTERLoss(alpha=0.5")
