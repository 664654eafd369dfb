"""The command line of the study of the temperature."""

import argparse
from collections.abc import Sequence

from benchmarks.measure import RESULTS
from benchmarks.studies.command import add_common, check_packages, positive
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.temperature",
        description="Trains InfoNCE as the registered run does, and asks held-out pairs for the best logit scale.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind")
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / "temperature")
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs.temperature", "realpairs")

    from benchmarks.studies.temperature.pipeline import check_all

    check_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
