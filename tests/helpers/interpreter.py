"""Triton's interpreter, in which kernels run where there is no GPU, without two fifths of its work."""

import functools
import os
from importlib.util import find_spec
from typing import Any

import torch


def quicken() -> None:
    """Prepare Triton's language for a function within kernels once; the interpreter does it at every call."""
    from triton.runtime import interpreter

    prepare = functools.cache(interpreter._patch_lang)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        prepare(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = call


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined: before its module is imported
    if find_spec("triton") is not None:
        quicken()
