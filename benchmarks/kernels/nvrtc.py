"""What NVRTC makes of the CUDA C++ kernels."""

from typing import Any

from benchmarks.kernels.cubin import resources, row

ARCHITECTURES = (80, 90, 100)


def builds() -> list[dict[str, Any]]:
    """Every kernel for every architecture that has it. A cubin holds all kernels of its architecture."""
    from otter_losses.ops.cuda import nvrtc, sinkhorn

    found = []
    for architecture in ARCHITECTURES:
        cubin = nvrtc.compile(sinkhorn.SOURCE, architecture, [("THREADS", str(sinkhorn.THREADS))])
        for name, used in sorted(resources(cubin).items()):
            kernel, switches = name.split("_")[:2]
            found.append(row(kernel, switches, architecture, used, len(cubin)))
    return found
