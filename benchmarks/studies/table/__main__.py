"""The command line of the table."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.studies import command
from benchmarks.studies.command import add_common, check_packages, positive

MODULES = (*command.MODULES, "scipy")
KEPT = "archives and features, about 130 MB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs",
        description="The paper's 42 evaluations in small, on real pairs of drawn pictures; its README.md has the protocol.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each loss and setting")
    parser.add_argument("--epochs", type=positive, default=10, help="length of each training run")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="only these settings (default: all seven)")
    parser.add_argument("--finetune", action="store_true", help="train the image encoder as well; slow without a GPU")
    add_common(parser, "realpairs", KEPT)
    options = parser.parse_args(arguments)
    check_packages(MODULES, "benchmarks.realpairs", "realpairs")

    from benchmarks.studies.table.pipeline import run_settings
    from benchmarks.studies.table.settings import SETTINGS

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


def parse_study(study: str, description: str, arguments: Sequence[str] | None, **own: dict[str, Any]) -> argparse.Namespace:
    """The options of another study of these pairs, once its packages are there; `own` are those that only it has."""
    from benchmarks.measure import RESULTS

    name = f"benchmarks.realpairs.{study}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for option, settings in own.items():
        parser.add_argument(f"--{option}", **settings)
    add_common(parser, "realpairs", KEPT)
    parser.set_defaults(output=RESULTS / study)
    options = parser.parse_args(arguments)
    check_packages(MODULES, name, "realpairs")
    return options


if __name__ == "__main__":
    main()
