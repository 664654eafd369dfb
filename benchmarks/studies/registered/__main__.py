"""The command line of the registered run."""

import argparse
from collections.abc import Sequence

from benchmarks.measure import RESULTS
from benchmarks.studies.command import add_common, check_packages
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.registered",
        description="Trains what is registered and still missing; its README.md has the protocol. It can be killed at any time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--report", action="store_true", help="read the test, once all runs are in, and write the tables")
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / "registered")
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs.registered", "realpairs")

    if options.report:
        from benchmarks.studies.registered.report import write_report

        print(write_report(output=options.output, cache=options.cache, jobs=options.jobs))
    else:
        from benchmarks.studies.registered.pipeline import run_all

        run_all(output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
