"""What NVRTC makes of the CUDA C++ kernels."""

from typing import Any

from benchmarks.kernels.cubin import resources, row

ARCHITECTURES = (80, 90, 100)


def builds() -> list[dict[str, Any]]:
    """Every kernel for every architecture that has it. A cubin holds all kernels of its architecture."""
    from otter_losses.ops.cuda import compiler, transport

    found = []
    for architecture in ARCHITECTURES:
        cubin = compiler.compile(transport.SOURCE, architecture, [("THREADS", str(transport.THREADS))])
        for name, used in sorted(resources(cubin).items()):
            kernel, switches = name.split("_")[:2]
            found.append(row(kernel, switches, architecture, used, len(cubin)))
    return found
