"""A second model for the average: copied, or given, with memory of its own."""

import copy
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from otter_losses.teacher.average import local

ATOMS = (weakref.ProxyType, type, types.ModuleType, types.FunctionType)
"""What is not looked into."""


def copy_of(model: nn.Module) -> nn.Module:
    """Tensors that hang on a graph, as kept activations and old weight norms do, are detached in the copy."""
    try:
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in _in_graph(model)})
    except Exception as error:
        raise TypeError(
            f"{_uncopyable(model)}, which copy.deepcopy refuses: {error}; need a second model for the average. "
            "Build it again and pass it: EMATeacher(model, module=build_model())."
        ) from error


def own_memory(model: nn.Module) -> None:
    """Unshare tensors that overlap themselves, as expanded ones do, or others: a write to one must not change the rest."""
    seen = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if (memory := _memory(tensor)) is not None:
            expanded = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            if expanded or memory in seen:
                tensor.data = tensor.data.clone()
            seen.add(memory)


def shared(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    """The name of one of theirs that has its memory in common with one of ours."""
    taken = {_memory(tensor) for tensor in ours.values()} - {None}
    return next((name for name, tensor in theirs.items() if _memory(tensor) in taken), None)


def _memory(tensor: Tensor) -> int | None:
    return local(tensor).untyped_storage()._cdata if tensor.layout == torch.strided else None


def _in_graph(model: nn.Module) -> Iterator[Tensor]:
    """What `copy.deepcopy` meets and refuses to copy."""
    seen: dict[int, Any] = {}
    todo: list[Any] = [model]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, ATOMS):
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple, set, deque)):
            todo += value
        else:
            todo += getattr(value, "__dict__", {}).values()


def _uncopyable(model: nn.Module) -> str:
    """The attribute that makes the copy fail."""
    modules = dict(model.named_modules())
    elsewhere = {id(each): each for each in (*modules.values(), *_in_graph(model))}
    for path, module in modules.items():
        own = {name: value for name, value in vars(module).items() if name not in ("_modules", "_parameters", "_buffers")}
        for name, value in (own | module._parameters | module._buffers).items():
            try:
                copy.deepcopy(value, dict(elsewhere))
            except Exception:
                return f"{'.'.join(filter(None, ('model', path, name)))} is a {type(value).__name__}"
    return f"model is a {type(model).__name__}"
