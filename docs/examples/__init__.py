"""Whole training runs, one a client. Each file begins with the commands that install what it needs and run it."""

import re
import sys
from types import TracebackType


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Where a package is missing, the command that installs it."""
    sys.__excepthook__(kind, error, trace)
    command = re.search("pip install .*", sys.modules["__main__"].__doc__ or "")
    if isinstance(error, ImportError) and command:
        print(f"This example needs more packages. From the root of a clone: {command[0]}", file=sys.stderr)


if sys.argv[0] == "-m":  # one of them is being run
    sys.excepthook = _explain
