"""What the compiler makes of every Triton kernel, without a GPU: registers, shared memory, spills; and the bytes each must move.

    python -m benchmarks.kernels

Compiles each kernel in every configuration that the losses launch for sm_70 (V100), sm_80 (A100), sm_90 (H100, H200) and sm_100
(B200), reads the cubin's resources, and writes ``benchmarks/results/kernels.{json,md}``. The bytes are derived, not measured.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

ARCHITECTURES = (70, 80, 90, 100)
TRAFFIC = {
    "row_scalings": "read K",
    "column_totals": "read K",
    "row_statistics": "read cosines and K",
    "column_statistics": "read cosines and K",
    "logits_gradient": "read cosines and K, write G",
    "sigmoid_losses": "read cosines",
    "sigmoid_gradient": "read cosines, write G",
}
"""N x N float32 matrices each kernel walks over; all else is vectors."""


def configurations(arguments: list[str]) -> Iterator[dict[str, bool]]:
    """The combinations of a kernel's switches that the losses launch."""
    for logarithmic in (False, True):
        if "TEACHER" not in arguments:
            yield {"LOGARITHMIC": logarithmic} if "LOGARITHMIC" in arguments else {}
            if "LOGARITHMIC" not in arguments:
                return
            continue
        for entropy in (False, True) if "ENTROPY" in arguments else (None,):
            yield {"TEACHER": True, "LOGARITHMIC": logarithmic, **({} if entropy is None else {"ENTROPY": entropy})}
    if "TEACHER" in arguments:
        yield {"TEACHER": False, "LOGARITHMIC": False, **({"ENTROPY": False} if "ENTROPY" in arguments else {})}


def build(name: str, switches: dict[str, bool], architecture: int) -> dict[str, Any]:
    """Compile one configuration and read its resources from the cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from otter_losses.ops.fused import kernels, passes

    kernel = getattr(kernels, name)
    constants = {**switches, **(passes.COLUMN_TILE if name.startswith("column") else passes.ROW_TILE)}
    signature = {
        argument: "constexpr" if argument in constants else "i32" if argument in ("m", "n", "start") else "*fp32"
        for argument in kernel.arg_names
    }
    positions = {(position,): constants[argument] for position, argument in enumerate(kernel.arg_names) if argument in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report.stdout)}
    return {
        "kernel": name,
        "switches": " ".join(switch.lower() for switch, on in switches.items() if on),
        "architecture": architecture,
        "registers": used["REG"],
        "stack_bytes": used["STACK"],
        "shared_bytes": used["SHARED"],
        "local_bytes": used["LOCAL"],
        "cubin_bytes": len(compiled.asm["cubin"]),
    }


def table(builds: list[dict[str, Any]]) -> str:
    """One row a configuration: registers for each architecture, shared memory and spills at their worst."""
    heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [
        f"| kernel | switches | N x N traffic | registers: {heads} | shared bytes | spilled bytes |",
        "|---" * (5 + len(ARCHITECTURES)) + "|",
    ]
    for name, switches in dict.fromkeys((build["kernel"], build["switches"]) for build in builds):
        rows = [build for build in builds if (build["kernel"], build["switches"]) == (name, switches)]
        registers = " | ".join(str(row["registers"]) for row in rows)
        shared = max(row["shared_bytes"] for row in rows)
        spilled = max(row["local_bytes"] + row["stack_bytes"] for row in rows)
        traffic = TRAFFIC[name] if "teacher" in switches else TRAFFIC[name].replace(" and K", "")
        lines.append(f"| `{name}` | {switches or 'none'} | {traffic} | {registers} | {shared} | {spilled} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels", help="where to write, without ending")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    import triton

    from otter_losses.ops.fused import kernels

    builds = [
        build(name, switches, architecture)
        for name in TRAFFIC
        for switches in configurations(getattr(kernels, name).arg_names)
        for architecture in ARCHITECTURES
    ]
    text = f"triton {triton.__version__}; compiled, not run on a GPU\n\n{table(builds)}\n"
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"triton": triton.__version__, "builds": builds}, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
