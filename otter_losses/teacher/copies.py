"""A second model for the average: copied, or given, with memory of its own."""

import contextlib
import copy
import dis
import functools
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
        with torch.no_grad():  # where scripts copy their weights by arithmetic
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


def check_functions(which: str, module: nn.Module, model: nn.Module) -> None:
    """That those in attributes and forward hooks, which a copy keeps as they are, hold nothing of the model."""
    theirs = {id(each) for each in (*model.modules(), *model.parameters(), *model.buffers())}
    for path, name, value in _attributes(module):
        unused = name.endswith("_hooks") and not name.startswith("_forward")
        if not unused and any(id(held) in theirs for held in _held(value)):
            raise TypeError(
                f"{'.'.join(filter(None, (which, path, name)))} holds a function that would run the model inside the teacher, "
                "whose average would go unused; need one of its own. Set it after the EMATeacher is built, or pass a second "
                "model that is built with its own: EMATeacher(model, module=build_model())."
            )


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
    elsewhere = {id(each): each for each in (*model.modules(), *_in_graph(model))}
    tensors = ((path, *named) for path, part in model.named_modules() for named in (part._parameters | part._buffers).items())
    for path, name, value in (*_attributes(model), *tensors):
        try:
            copy.deepcopy(value, dict(elsewhere))
        except Exception:
            return f"{'.'.join(filter(None, ('model', path, name)))} is a {type(value).__name__}"
    return f"model is a {type(model).__name__}"


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of each that is no part of the model."""
    for path, part in model.named_modules():
        for name, value in vars(part).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                yield path, name, value


def _held(value: Any) -> Iterator[Any]:
    """The modules and tensors that it would run or read: in containers, functions and other callables, not in plain objects."""
    seen: dict[int, Any] = {}
    todo = [value]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType)):
            continue
        seen[id(value)] = value
        if isinstance(value, (nn.Module, Tensor)):
            yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple, set, deque)):
            todo += value
        elif callable(value):
            todo += getattr(value, "__dict__", {}).values()  # as __wrapped__, and what torch.compile calls
            if isinstance(value, types.MethodType):
                todo += (value.__self__, value.__func__)
            elif isinstance(value, functools.partial):
                todo += (value.func, value.args, value.keywords)
            elif isinstance(value, types.FunctionType):
                todo += _variables(value)


def _variables(function: types.FunctionType) -> Iterator[Any]:
    """Defaults, what is enclosed, and globals that are no plain functions."""
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # empty
            yield cell.cell_contents
    for instruction in dis.get_instructions(function):
        if instruction.opname == "LOAD_GLOBAL":
            value = function.__globals__.get(instruction.argval)
            if not isinstance(value, types.FunctionType) or value.__closure__:
                yield value
