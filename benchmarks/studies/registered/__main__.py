"""The command line of the registered run."""

from collections.abc import Sequence

from benchmarks.studies.table.__main__ import parse_study


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_study(
        "registered",
        "Trains what is registered and still missing; its README.md has the protocol. It can be killed at any time.",
        arguments,
        report={"action": "store_true", "help": "read the test, once all runs are in, and write the tables"},
    )

    if options.report:
        from benchmarks.studies.registered.report import write_report

        print(write_report(output=options.output, cache=options.cache, jobs=options.jobs))
    else:
        from benchmarks.studies.registered.pipeline import run_all

        run_all(output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
