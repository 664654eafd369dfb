"""What torch.compile is told, without importing it."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def is_exporting() -> bool:
    """Whether torch.export traces: what holds of the example must hold of every size then."""
    return torch.compiler.is_compiling() and bool(getattr(torch.compiler, "is_exporting", lambda: False)())


def known_when_exporting(condition: bool) -> bool:
    """Whether a condition on sizes holds for every size that the exported program may be given."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # which imports sympy

    return statically_known_true(condition)


def constant_when_traced(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let torch.compile run a function of constants once and take its result for one, instead of tracing it.

    This is `torch.compiler.assume_constant_result`, which would import the compiler and Triton with it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
