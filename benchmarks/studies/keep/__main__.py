"""The command line of the study of keeping and weighing."""

from collections.abc import Sequence

from benchmarks.studies.table.__main__ import parse_study


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_study(
        "keep",
        "Trains on the pairs that the audit keeps, and on all of them with weights. Reads no test concept.",
        arguments,
        seeds={"nargs": "+", "type": int, "default": [301, 302, 303]},
    )

    from benchmarks.studies.keep.pipeline import run_all

    run_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
