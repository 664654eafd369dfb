"""The command line of the study of trust."""

import argparse
from collections.abc import Sequence

from benchmarks.measure import RESULTS
from benchmarks.studies.command import add_common, check_packages, positive
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.trust",
        description="Judges training pairs of which some have another's caption by pair_trust, and counts what it finds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=3, help="shuffles of each kind")
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / "trust")
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs.trust", "realpairs")

    from benchmarks.studies.trust.pipeline import judge_all

    judge_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
