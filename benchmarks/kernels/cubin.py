"""What a cubin says of its kernels."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def resources(cubin: bytes) -> dict[str, dict[str, int]]:
    """Of each kernel in it, as cuobjdump names them: REG, STACK, SHARED and LOCAL."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    kernels = re.findall(r"Function (\w+):\s*(.+)", report.stdout)
    return {name: {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)} for name, line in kernels}


def row(
    kernel: str, switches: str, architecture: int | str, used: dict[str, int], size: int, shared: int = 0, traffic: str = ""
) -> dict[str, Any]:
    """A kernel's resources for the table's JSON; `shared` is what its launch asks for beyond them, in bytes."""
    return {
        "kernel": kernel,
        "switches": switches,
        "traffic": traffic,
        "architecture": architecture,
        "registers": used["REG"],
        "stack_bytes": used["STACK"],
        "shared_bytes": used["SHARED"] + shared,
        "local_bytes": used["LOCAL"],
        "binary_bytes": size,
    }
