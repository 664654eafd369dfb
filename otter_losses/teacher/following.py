"""What is done after each whole step of an optimizer, whatever it wraps or is wrapped in."""

import functools
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from otter_losses.teacher.average import local

SOME = 16
"""Numbers of a parameter that are looked at."""

INSTEAD = "or call teacher.update(model) after the step"


class HasStep(Protocol):
    """An optimizer, or a wrapper of one."""

    def step(self, *args: Any, **kwargs: Any) -> Any: ...


def after_each_step(optimizer: HasStep, parameters: Sequence[nn.Parameter], act: Callable[[], None]) -> RemovableHandle:
    """Act once after each step of the optimizer.

    A wrapper of another optimizer has stepped when the inner one has, and is done when its own `step` returns.
    """
    layers = _Layers()
    if not _is_optimizer(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; need a torch.optim.Optimizer or a wrapper that has its step and "
            f"param_groups. Pass that, {INSTEAD}."
        )
    layers.explore(optimizer)
    _check_followable(optimizer, layers, parameters)
    steps = _Steps(parameters)
    hooks = [leaf._optimizer_step_post_hooks for leaf in layers.innermost if _fires_hooks(leaf)]
    handle = RemovableHandle(steps.acts, extra_dict=hooks)
    steps.acts[handle.id] = act
    for leaf in layers.innermost:
        if _fires_hooks(leaf):
            leaf._optimizer_step_post_hooks[handle.id] = steps.stepped
        else:
            _wrap_step(leaf, functools.partial(steps.innermost, leaf))
    for layer in layers.wrappers:
        _wrap_step(layer, steps.whole)
    return handle


class _Steps:
    """Whether an innermost optimizer has stepped, and whether the outermost `step` that was called is done."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.acts: OrderedDict[int, Callable[[], None]] = OrderedDict()
        self._parameters = [parameter for parameter in parameters if parameter.layout == torch.strided]
        self._depth = 0
        self._stepped: bool | None = None
        self._inner_steps = False

    def stepped(self, optimizer: Any, *_: Any) -> None:
        skipped = bool(getattr(optimizer, "found_inf", False))  # by a gradient scaler, inside a fused step
        self._stepped = self._stepped or not skipped
        self._inner_steps = True
        if self._depth == 0:
            self._finish()

    @contextmanager
    def innermost(self, optimizer: Any) -> Iterator[None]:
        yield
        self.stepped(optimizer)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A wrapper that leaves the inner `step` aside has stepped if a parameter was written to."""
        if self._depth == 0:
            self._stepped = None
        marks, numbers = self._marks(), self._numbers()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._stepped is None:
            self._stepped = self._marks() != marks or not all(map(torch.equal, numbers, self._numbers())) or None
        if self._depth == 0:
            self._finish()

    def _marks(self) -> list[tuple[int, int]]:
        return [(parameter._version, local(parameter.detach()).data_ptr()) for parameter in self._parameters]

    def _numbers(self) -> list[Tensor]:
        """Some of each parameter, as writes to its data leave no mark; none where inner steps are known to be the rule."""
        parameters = () if self._inner_steps else self._parameters
        return [local(parameter.detach()).flatten()[:SOME].clone() for parameter in parameters]

    def _finish(self) -> None:
        stepped, self._stepped = self._stepped, None
        for act in self.acts.values() if stepped else ():
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "optimizer steps inside backward, where other parameters are still to come; need a step of all of them. "
                    "Call teacher.update(model) after backward."
                )
            act()


class _Layers:
    """The optimizers that one holds, in its attributes, in lists and dicts there, or in objects: wrappers and innermost ones."""

    def __init__(self) -> None:
        self.wrappers: list[Any] = []
        self.innermost: list[Any] = []
        self.held: dict[int, Any] = {}

    def explore(self, value: Any) -> bool:
        """Whether an optimizer is in it."""
        if id(value) in self.held:
            return any(value is layer for layer in (*self.wrappers, *self.innermost))
        self.held[id(value)] = value
        if _is_optimizer(value):
            parts = (getattr(value, "param_groups", None), *_attributes(value))
            wraps = self._explore_all(parts) or self._explore_all(self._inside(parts))
            (self.wrappers if wraps else self.innermost).append(value)
            return True
        if isinstance(value, dict):
            return self._explore_all((*value.keys(), *value.values()))
        return isinstance(value, (list, tuple, set)) and self._explore_all(value)

    def _inside(self, objects: Iterable[Any]) -> Iterator[Any]:
        """Optimizers in attributes of these, of parameters that were met: another, as of a trainer's, is none of this one's."""
        for inner in (each for value in objects for each in _attributes(value)):
            if _is_optimizer(inner):
                groups = getattr(inner, "param_groups", ())
                if any(id(parameter) in self.held for group in groups for parameter in group["params"]):
                    yield inner

    def _explore_all(self, values: Iterable[Any]) -> bool:
        return True in [self.explore(value) for value in values]


def _attributes(value: Any) -> Iterable[Any]:
    """Of a plain object."""
    known = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)
    return () if isinstance(value, known) else getattr(value, "__dict__", {}).values()


def _is_optimizer(value: Any) -> bool:
    """Or a wrapper of one that is none itself. Schedulers and gradient scalers have a `step` as well."""
    kind = type(value)
    if issubclass(kind, Tensor) or not callable(getattr(kind, "step", None)):
        return False
    return issubclass(kind, Optimizer) or hasattr(value, "param_groups") or hasattr(value, "zero_grad")


def _check_followable(optimizer: Any, layers: _Layers, parameters: Sequence[nn.Parameter]) -> None:
    kind = type(optimizer).__name__
    for layer in (*layers.wrappers, *layers.innermost):
        in_backward = hasattr(layer, "fused_backward") or getattr(layer, "_overlap_with_ddp", False)
        if in_backward or inspect.unwrap(type(layer).step) is inspect.unwrap(Optimizer.step):
            raise TypeError(
                f"optimizer is a {kind}, whose step does not train: it steps inside backward; need one with a step. "
                "Call teacher.update(model) after backward."
            )
    if not any(id(parameter) in layers.held for parameter in parameters):
        raise ValueError(
            f"optimizer is a {kind} that has none of the model's parameters; need the one that trains the model. "
            f"Build it from model.parameters(), after the model was moved or sharded, {INSTEAD}."
        )


def _fires_hooks(optimizer: Any) -> bool:
    """Whether each step runs torch's hooks, and once: a subclass that calls its parent's step may run them after both."""
    steps = {
        inspect.unwrap(vars(kind)["step"]) for kind in type(optimizer).__mro__ if kind is not Optimizer and "step" in vars(kind)
    }
    has_hooks = isinstance(optimizer, Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)
    return has_hooks and getattr(optimizer.step, "hooked", False) and len(steps) == 1


def _wrap_step(optimizer: Any, around: Callable[[], AbstractContextManager[None]]) -> None:
    """As a bound method of the same name, which schedulers wrap again and pickle finds in the class."""
    original = optimizer.step

    @functools.wraps(getattr(original, "__func__", original))
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not optimizer:  # a copy
            return type(self).step(self, *args, **kwargs)
        with around():
            return original(*args, **kwargs)

    step.__name__ = "step"
    try:
        object.__setattr__(optimizer, "step", types.MethodType(step, optimizer))  # not in what a wrapper hands attributes on to
    except AttributeError as error:
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__} whose step cannot be replaced; need an attribute step. "
            "Call teacher.update(model) after the step."
        ) from error
