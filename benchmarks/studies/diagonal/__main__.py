"""The command line of the diagonal study."""

import argparse
from collections.abc import Sequence

from benchmarks.studies.command import add_common, check_packages, positive
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.diagonal",
        description="Trains OTTER as in the paper and as in the released code over 8 ranks of 64, with and without its mistakes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each arm and setting")
    parser.add_argument("--epochs", type=positive, default=10, help="length of each training run")
    add_common(parser, "realpairs", KEPT)
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs", "realpairs")

    from benchmarks.studies.diagonal.pipeline import run_arms

    run_arms(seeds=options.seeds, epochs=options.epochs, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
