"""What is public: names, arguments in their order, defaults. A change is a matter for docs/versions.md and the changelog.

After a change that is meant: ``python -m tests.test_api > tests/api.txt``.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from difflib import unified_diff
from importlib import import_module
from typing import Any

from otter_losses.losses.base import PairLoss
from tests.helpers.paths import ROOT

MODULES = [
    "otter_losses",
    "otter_losses.functional",
    "otter_losses.audit",
    "otter_losses.diagnostics",
    "otter_losses.integrations.open_clip",
    "otter_losses.integrations.pair_values",
    "otter_losses.integrations.sentence_transformers",
    "otter_losses.integrations.transformers",
]


def described() -> Iterator[str]:
    """A line a function, class, and method, attribute or field of one."""
    yield from _class("otter_losses.losses.base.PairLoss", PairLoss)
    for module in MODULES:
        public = import_module(module)
        for name in public.__all__:
            value = getattr(public, name)
            if inspect.isclass(value):
                yield from _class(f"{module}.{name}", value)
            elif inspect.isfunction(value):
                yield f"{module}.{name}{_arguments(value)}"
            else:
                yield f"{module}.{name}"


def _class(path: str, of: type) -> Iterator[str]:
    yield f"{path}{_arguments(of)}"
    for name in sorted({*vars(of), *inspect.get_annotations(of)}):
        value = inspect.getattr_static(of, name, None)
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
            yield f"{path}.{name}{_arguments(getattr(of, name))}"
        else:
            yield f"{path}.{name}"


def _arguments(function: Callable[..., Any]) -> str:
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(function).parameters.values()
        if each.name not in ("self", "shard")
    ]
    return re.sub(r"<function (\S+) at 0x\w+>", r"\1", str(inspect.Signature(parameters)))


def test_nothing_public_has_changed_unnoticed() -> None:
    kept = (ROOT / "tests" / "api.txt").read_text(encoding="utf-8").splitlines()
    changes = "\n".join(unified_diff(kept, list(described()), "tests/api.txt", "now", lineterm="", n=0))
    assert not changes, f"{changes}\n\nIf it is meant: a line in CHANGELOG.md, and python -m tests.test_api > tests/api.txt"


if __name__ == "__main__":
    print("\n".join(described()))
