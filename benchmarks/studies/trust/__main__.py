"""The command line of the study of trust."""

from collections.abc import Sequence

from benchmarks.studies.command import positive
from benchmarks.studies.table.__main__ import parse_study


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_study(
        "trust",
        "Judges training pairs of which some have another's caption by pair_trust, and counts what it finds.",
        arguments,
        seeds={"type": positive, "default": 3, "help": "shuffles of each kind"},
    )

    from benchmarks.studies.trust.pipeline import judge_all

    judge_all(seeds=options.seeds, output=options.output, cache=options.cache, jobs=options.jobs)


if __name__ == "__main__":
    main()
