"""What a loss's constructor takes, as `help`, `inspect.signature` and editors show it."""

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

OPEN = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def spell_out(function: Callable[..., Any], passed_on_to: Callable[..., Any] | None = None) -> None:
    """Show, in place of a function's ``**keywords``, the parameters of the function that they are passed on to."""
    own = signature(function)
    if all(each.kind != Parameter.VAR_KEYWORD for each in own.parameters.values()):
        return
    shown = [each for each in own.parameters.values() if each.kind != Parameter.VAR_KEYWORD]
    further = signature(passed_on_to).parameters.values() if passed_on_to is not None else ()
    shown += [
        each.replace(kind=Parameter.KEYWORD_ONLY) for each in further if each.kind not in OPEN and each.name not in own.parameters
    ]
    function.__signature__ = Signature(shown, return_annotation=own.return_annotation)  # type: ignore[attr-defined]


def option_names(cls: type) -> list[str]:
    """What a class's constructor takes."""
    return [each.name for each in signature(cls).parameters.values() if each.kind not in OPEN]
