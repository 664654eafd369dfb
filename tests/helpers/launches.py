"""What a step launches on a device, counted without one: kernels of ours, and torch's operations, each a kernel there."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library import custom_ops
from torch.utils._python_dispatch import TorchDispatchMode

FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "is_same_size", "_local_scalar_dense"}
"""Operations that launch nothing, beside views."""


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[1]
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
        ours = function.namespace == "otter_losses"
        if ours:  # what it does itself is counted
            with self:
                result = custom_ops.OPDEFS[function._schema.name].run(*args, **(kwargs or {}))
        else:
            result = function(*args, **(kwargs or {}))
        empty = isinstance(result, Tensor) and result.numel() == 0
        if not (is_view or ours or empty or name in FREE or name == "detach"):
            self.found[name] += 1
        return result


def _multiplied(total: Tensor, *_: object) -> Tensor:
    """A product, as one operation and without its cost."""
    return total.zero_()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Launches by their names, meanwhile. Kernels of ours do not run: the numbers are of no account."""
    from otter_losses.ops.triton import feature_gradients, gemm
    from otter_losses.ops.triton.launch import Kernel, observed

    found: Counter[str] = Counter()

    def note(kernel: Kernel, arguments: Mapping[str, object]) -> None:
        found[kernel.name] += 1

    def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return _multiplied(out)

    def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
        _multiplied(total)

    with (
        patch.object(feature_gradients, "add_product", add_product),
        patch.object(gemm, "product", product),
        observed(note, runs=False),
        _Counting(found),
    ):
        yield found


def of_step(step: Callable[[], Tensor]) -> Counter[str]:
    """Of a forward and its backward."""
    with counted() as found:
        torch.autograd.backward(step())
    return found
