"""The command of `benchmarks.kernels`."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks import kernels, markdown
from benchmarks.kernels import builds, nvrtc
from benchmarks.kernels.builds import ARCHITECTURES
from benchmarks.kernels.launches import recorded
from benchmarks.measure import RESULTS


def table(found: list[dict[str, Any]]) -> str:
    """One row a kernel and switches: registers for each architecture, shared memory and spills, at their worst."""
    lines = []
    for name, switches in dict.fromkeys((build["kernel"], build["switches"]) for build in found):
        rows = [build for build in found if (build["kernel"], build["switches"]) == (name, switches)]
        registers = [
            str(max((row["registers"] for row in rows if row["architecture"] == architecture), default="-"))
            for architecture in ARCHITECTURES
        ]
        shared = str(max(row["shared_bytes"] for row in rows))
        spilled = str(max(row["local_bytes"] + row["stack_bytes"] for row in rows))
        lines.append([f"`{name}`", switches or "none", rows[0]["traffic"], *registers, shared, spilled])
    first, *others = (each if isinstance(each, str) else f"sm_{each}" for each in ARCHITECTURES)
    heads = ["kernel", "switches", "N x N traffic", f"registers: {first}", *others, "shared bytes", "spilled bytes"]
    return markdown.table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=kernels.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels", help="where to write, without ending")
    parser.add_argument("--list", action="store_true", help="print what there is to compile and stop; needs TRITON_INTERPRET=1")
    options = parser.parse_args()
    if options.list:
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--list runs the losses in Triton's interpreter; need TRITON_INTERPRET=1 in the environment. Set it.")
        print(json.dumps([vars(launch) for launch in recorded()]))
        return
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    import triton

    found = builds.builds()
    try:
        found += nvrtc.builds()
    except (ImportError, RuntimeError) as error:
        print(f"The CUDA C++ kernels are left out: {error}")
    text = f"triton {triton.__version__}; compiled, not run on a GPU\n\n{table(found)}\n"
    markdown.write(options.output, text, {"triton": triton.__version__, "builds": found})


if __name__ == "__main__":
    main()
