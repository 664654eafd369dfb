"""``python -m benchmarks.reproduction {prepare,train,evaluate,table}``; `--help` of each says what it takes."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

COMMANDS = {
    "prepare": "index the caption files and images of a data set",
    "train": "train one of the paper's losses",
    "evaluate": "score a checkpoint zero-shot and on retrieval",
    "table": "print the paper's numbers beside those that `evaluate` wrote",
}
PACKAGES = ("torch", "numpy", "timm", "transformers", "PIL", "tqdm")


def main(arguments: Sequence[str] | None = None) -> None:
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        sys.exit(f"The reproduction needs {', '.join(missing)}; install with: pip install -e .[reproduction]")
    from benchmarks.reproduction import dry_run

    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction", description="The paper's experiment.")
    parser.add_argument("--debug", action="store_true", help="show where in the program an error came from")
    commands = parser.add_subparsers(dest="command", required=True)
    modules = {}
    for name, text in COMMANDS.items():
        modules[name] = import_module(f"benchmarks.reproduction.{name}")
        modules[name].add_arguments(commands.add_parser(name, help=text, description=text))
    dry_run.add_arguments(commands.choices["train"])
    options = parser.parse_args(arguments)
    chosen = dry_run if options.command == "train" and options.dry_run else modules[options.command]
    try:
        chosen.run(options)
    except (OSError, ValueError, RuntimeError) as error:
        if options.debug:
            raise
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
