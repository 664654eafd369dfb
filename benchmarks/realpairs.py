"""The command of `benchmarks.studies.table`, and of its `choose`; that of `benchmarks.studies.diagonal`."""

from benchmarks import studies
from benchmarks.studies import table
from benchmarks.studies.table.__main__ import main

__path__ = [
    *table.__path__,
    *studies.__path__,
]  # where ``python -m benchmarks.realpairs.choose`` and ``.diagonal`` are looked for

if __name__ == "__main__":
    main()
