"""The command line of the study of keeping and weighing."""

import argparse
from collections.abc import Sequence

from benchmarks.measure import RESULTS
from benchmarks.studies.command import add_common, check_packages
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.keep",
        description="Trains on the pairs that the audit keeps, and on all of them with weights. Reads no test concept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[301, 302, 303])
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / "keep")
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs.keep", "realpairs")

    from benchmarks.studies.keep.pipeline import run_all

    run_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
