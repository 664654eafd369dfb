"""The command line of the collapse study."""

from collections.abc import Sequence

from benchmarks.studies.table.__main__ import parse_study


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_study(
        "collapse",
        "Trains RobustLoss with one part changed at a time; its README.md has the findings. Reads no test concept.",
        arguments,
        seeds={"nargs": "+", "type": int, "default": [101, 102], "help": "of the changes that find the mechanism"},
        fresh={"nargs": "+", "type": int, "default": [201, 202, 203], "help": "of the comparison of the guard with none"},
    )

    from benchmarks.studies.collapse.pipeline import run_all

    run_all(seeds=options.seeds, fresh=options.fresh, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
