"""The command line of the collapse study."""

import argparse
from collections.abc import Sequence

from benchmarks.measure import RESULTS
from benchmarks.studies.command import add_common, check_packages
from benchmarks.studies.table.__main__ import KEPT, MODULES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.collapse",
        description="Trains RobustLoss with one part changed at a time; its README.md has the findings. Reads no test concept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102], help="of the changes that find the mechanism")
    parser.add_argument("--fresh", nargs="+", type=int, default=[201, 202, 203], help="of the comparison of the guard with none")
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / "collapse")
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs.collapse", "realpairs")

    from benchmarks.studies.collapse.pipeline import run_all

    run_all(seeds=options.seeds, fresh=options.fresh, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
