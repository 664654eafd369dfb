"""What the compilers make of every kernel, without a GPU: registers, shared memory, spills; and the bytes each must move.

    python -m benchmarks.kernels

Runs every loss in Triton's interpreter, in every way that leads to other kernels, and compiles what was launched for sm_70
(V100), sm_80 (A100), sm_90 (H100, H200) and sm_100 (B200), and for sm_90 also what a batch launches whose size is odd; beside
it the CUDA C++ kernels, where NVRTC is installed. Reads each cubin's resources and writes
``benchmarks/results/kernels.{json,md}``. The bytes are counted, not measured.
"""

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.nvrtc import resources
from benchmarks.measure import RESULTS

ARCHITECTURES = (70, 80, 90, 100)
TRAFFIC = {
    "encode": "read block, write K",
    "row_scalings": "read K",
    "column_totals": "read K",
    "statistics": "read cosines and K",
    "logits_gradient": "read cosines and K, write G",
    "sigmoid_losses": "read cosines",
    "sigmoid_gradient": "read cosines, write G",
}
"""N x N matrices each kernel walks over, in words; all else is vectors. K is 4 bytes an entry, in codes 2; G as wide as x."""

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int16: "*i16"}


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments and its constants, as a launch specialises them."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | bool], ...]
    aligned: tuple[int, ...]
    warps: int

    @classmethod
    def of(cls, signature: list[Any], constants: list[Any], aligned: list[int], **others: Any) -> "Launch":
        """From JSON."""
        pairs = (tuple((name, value) for name, value in each) for each in (signature, constants))
        return cls(signature=next(pairs), constants=next(pairs), aligned=tuple(aligned), **others)

    def choices(self) -> "list[Launch]":
        """The same with every tile that the kernel may be launched with; in an odd batch the first is proof enough."""
        from otter_losses.ops.triton import soft_target, transport

        tiles = {
            "row_scalings": transport.ROWS,
            "sigmoid_losses": transport.ROWS,
            "column_totals": transport.COLUMNS,
            "statistics": soft_target.TILES,
            "logits_gradient": soft_target.TILES,
            "sigmoid_gradient": soft_target.TILES,
        }.get(self.kernel)
        if tiles is None or not self.usual:
            return [self]
        others = tuple((name, value) for name, value in self.constants if name not in ("BM", "BN"))
        return [
            replace(self, constants=(*others, ("BM", tile["BM"]), ("BN", tile["BN"])), warps=tile["num_warps"]) for tile in tiles
        ]

    @property
    def usual(self) -> bool:
        """All aligned, as in batches whose size 16 divides."""
        return all(
            position in self.aligned
            for position, (name, kind) in enumerate(self.signature)
            if kind[0] == "*" or name in ("m", "n")
        )

    @property
    def odd(self) -> bool:
        """Whether the rows of its matrices start where 16 bytes do not."""
        names = [name for name, _ in self.signature]
        return "n" in names and "m" in names and names.index("n") not in self.aligned

    @property
    def switches(self) -> str:
        words = [name.lower() for name, value in self.constants if value is True]
        kinds = {0: "plain", 1: "logarithmic", 2: "codes"}
        words += [kinds[value] for name, value in self.constants if name == "KIND"]
        words += ["odd"] if self.odd else []
        types = sorted({kind for name, kind in self.signature if name in ("k", "g", "out", "values") and kind != "*fp32"})
        return " ".join([*words, *(kind.strip("*") for kind in types)])


def recorded() -> list[Launch]:
    """Everything the losses launch, found by running them in the interpreter: needs TRITON_INTERPRET=1."""
    from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
    from otter_losses.ops import dispatch, similarity
    from otter_losses.ops.triton import launch

    found: dict[Launch, None] = {}

    def note(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        names = list(kernel.arg_names)
        given = dict(zip(names, arguments, strict=False))
        # A launch takes a 1 as a constant; here a small batch makes some that are not 1 in a large one.
        ones = [name for name, value in given.items() if isinstance(value, int) and value == 1]
        add(kernel, given, options, ones)
        add(kernel, given, options, [name for name in ones if name.endswith("stride")])

    def add(kernel: Any, given: dict[str, Any], options: dict[str, Any], ones: list[str]) -> None:
        names = list(kernel.arg_names)
        constants = {**dict.fromkeys(ones, 1), **{name: value for name, value in options.items() if name in names}}
        signature, aligned = [], []
        for position, name in enumerate(names):
            value = given.get(name)
            if name in constants:
                signature.append((name, "constexpr"))
            elif isinstance(value, torch.Tensor):
                signature.append((name, POINTERS[value.dtype]))
                if value.data_ptr() % 16 == 0:
                    aligned.append(position)
            else:
                signature.append((name, "fp32" if isinstance(value, float) else "i32"))
                if isinstance(value, int) and value % 16 == 0:
                    aligned.append(position)
        place = kernel.fn.__module__, kernel.fn.__name__
        sorted_constants = tuple(sorted(constants.items()))
        found.setdefault(Launch(*place, tuple(signature), sorted_constants, tuple(aligned), options["num_warps"]))

    similarity.CHUNK_ELEMENTS, similarity.LEAST_ROWS = {"cpu": 1}, {"cpu": 32}  # two blocks
    dispatch.STAYS_IN_CACHE = 0
    generator = torch.Generator().manual_seed(0)
    losses: dict[str, Callable[..., Any]] = {
        "otter": OTTERLoss,
        "otter, logarithms": lambda **options: OTTERLoss(epsilon=0.01, **options),
        "official": OTTERLoss.official,
        "official, logarithms": lambda **options: OTTERLoss.official(epsilon=0.01, **options),
        "info_nce": InfoNCELoss,
        "label_smoothing": LabelSmoothingLoss,
        "distillation": DistillationLoss,
        "siglip": SigLIPLoss,
    }
    launch.on_launch = note
    for dtype in POINTERS:
        if not dtype.is_floating_point:
            continue
        for pairs, build in itertools.product((48, 41), losses.values()):
            features = torch.nn.functional.normalize(torch.randn(4, pairs, 16, generator=generator), dim=-1).to(dtype)
            for max_memory in (2 << 30, 0):
                x, y, v, t = (each.clone().requires_grad_() for each in features)
                value = build(backend="triton", max_memory=max_memory)(x, y, 14.3, dist_image_features=v, dist_text_features=t)
                value.backward()
    return list(found)


def _listed() -> list[Launch]:
    """`recorded`, in a process that interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)

    return [Launch.of(**row) for row in json.loads(done.stdout)]


def build(launch: Launch, architecture: int) -> dict[str, Any]:
    """Compile and read the resources from the cubin."""
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    constants = dict(launch.constants)
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(position,): [["tt.divisibility", 16]] for position in launch.aligned}
    source = ASTSource(fn=kernel, signature=dict(launch.signature), constexprs=positions, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": launch.warps})
    (used,) = resources(compiled.asm["cubin"]).values()
    return {
        "kernel": launch.kernel,
        "switches": launch.switches,
        "architecture": architecture,
        "registers": used["REG"],
        "stack_bytes": used["STACK"],
        "shared_bytes": used["SHARED"] + compiled.metadata.shared,
        "local_bytes": used["LOCAL"],
        "cubin_bytes": len(compiled.asm["cubin"]),
    }


def _build(job: tuple[Launch, int]) -> dict[str, Any]:
    return build(*job)


def builds() -> list[dict[str, Any]]:
    """All launches for all architectures."""
    launches = dict.fromkeys(choice for launch in _listed() for choice in launch.choices())
    jobs = [(launch, each) for launch in launches for each in (ARCHITECTURES if launch.usual else (90,))]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_build, jobs, chunksize=4))


def table(builds: list[dict[str, Any]]) -> str:
    """One row a kernel and switches: registers for each architecture, shared memory and spills, at their worst."""
    heads = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [
        f"| kernel | switches | N x N traffic | registers: {heads} | shared bytes | spilled bytes |",
        "|---" * (5 + len(ARCHITECTURES)) + "|",
    ]
    for name, switches in dict.fromkeys((build["kernel"], build["switches"]) for build in builds):
        rows = [build for build in builds if (build["kernel"], build["switches"]) == (name, switches)]
        registers = " | ".join(
            str(max((row["registers"] for row in rows if row["architecture"] == architecture), default="-"))
            for architecture in ARCHITECTURES
        )
        shared = max(row["shared_bytes"] for row in rows)
        spilled = max(row["local_bytes"] + row["stack_bytes"] for row in rows)
        lines.append(f"| `{name}` | {switches or 'none'} | {TRAFFIC.get(name, '')} | {registers} | {shared} | {spilled} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels", help="where to write, without ending")
    parser.add_argument("--list", action="store_true", help="print what there is to compile and stop; needs TRITON_INTERPRET=1")
    options = parser.parse_args()
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if options.list:
        print(json.dumps([vars(launch) for launch in recorded()]))
        return
    if interprets:
        parser.error("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    import triton

    found = builds()
    versions = f"triton {triton.__version__}"
    try:
        from benchmarks.kernels import nvrtc

        found += nvrtc.builds()
    except (ImportError, RuntimeError) as error:
        print(f"The CUDA C++ kernels are left out: {error}")
    text = f"{versions}; compiled, not run on a GPU\n\n{table(found)}\n"
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"triton": triton.__version__, "builds": found}, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(text)
