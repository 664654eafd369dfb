"""The command line of the study of the temperature."""

from collections.abc import Sequence

from benchmarks.studies.command import positive
from benchmarks.studies.table.__main__ import parse_study


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_study(
        "temperature",
        "Trains InfoNCE as the registered run does, and asks held-out pairs for the best logit scale.",
        arguments,
        seeds={"type": positive, "default": 3, "help": "runs of each kind"},
    )

    from benchmarks.studies.temperature.pipeline import check_all

    check_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
