"""What NVRTC makes of the CUDA C++ kernels, without a GPU: registers, shared memory, spills; see also `benchmarks.kernels`."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)


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


def builds() -> list[dict[str, Any]]:
    """Every kernel for every architecture that has it. A cubin holds all kernels of its architecture."""
    from otter_losses.ops.cuda import compiler, transport

    found = []
    for architecture in ARCHITECTURES:
        cubin = compiler.compile(transport.SOURCE, architecture, [("THREADS", str(transport.THREADS))])
        for kernel, used in sorted(resources(cubin).items()):
            found.append(
                {
                    "kernel": kernel.split("_")[0],
                    "switches": kernel.split("_")[1],
                    "architecture": architecture,
                    "registers": used["REG"],
                    "stack_bytes": used["STACK"],
                    "shared_bytes": used["SHARED"],
                    "local_bytes": used["LOCAL"],
                    "cubin_bytes": len(cubin),
                }
            )
    return found
