"""The command of `benchmarks.studies.demo`, and of its `choose`."""

from benchmarks.studies import demo
from benchmarks.studies.demo.__main__ import main

__path__ = demo.__path__  # where ``python -m benchmarks.demo.choose`` is looked for

if __name__ == "__main__":
    main()
