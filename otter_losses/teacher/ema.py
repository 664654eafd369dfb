"""EMATeacher: what it averages, and when it is refused."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from otter_losses import checks
from otter_losses.teacher.average import beside, in_single, is_averaged, is_half, local, mix, precise
from otter_losses.teacher.copies import check_functions, copy_of, own_memory, shared
from otter_losses.teacher.following import HasStep, after_each_step
from otter_losses.teacher.parts import Average, Exact, key, leave_inference_mode, name_old_keys, tensors
from otter_losses.teacher.students import check_copyable, check_not_flattened, check_sharding, difference, reshard, unwrap

_following: WeakKeyDictionary["EMATeacher", RemovableHandle] = WeakKeyDictionary()
"""Beside the teachers, as their copies follow nothing."""


class EMATeacher(nn.Module):
    r"""Exponential moving average of a model, for use as the distillation teacher.

    .. math:: \theta' \leftarrow d_n \theta' + (1 - d_n) \theta, \qquad d_n = \min\big(d, \tfrac{1 + n}{10 + n}\big)

    This is the update after the n-th step, counted from 1; without warm-up, the decay is always d. Floating-point buffers, such
    as BatchNorm's statistics, are averaged as well. Other buffers are copied, and so are numbers where the model's or the
    average is infinite or NaN. For float16 and bfloat16 tensors, whose small steps would be rounded away, the averages are also
    kept in float32, even if the teacher is cast later. The teacher starts as a copy of the model. It stays in eval mode,
    whatever mode it or its parent is put in, and computes without gradient. It is saved and loaded through ``state_dict``,
    together with its step count. A teacher inside the model, as in ``self.teacher = EMATeacher(self)``, is not part of the
    average.

    Args:
        model: the student. It may be wrapped in DistributedDataParallel or torch.compile, but not yet sharded by
            ``fully_shard``.
        decay: d in [0, 1).
        warmup: follow fast at first, so that the teacher is not stuck at the initialisation.
        module: another model of the same architecture that becomes the average, for cases where ``copy.deepcopy`` refuses the
            model. Its numbers are set to the model's; its dtype and device stay.

    Attributes:
        module: the averaged model, for its attributes and other methods: ``teacher.module.encode_image(images)``. Call those
            under ``torch.no_grad()``.

    Raises:
        TypeError: the model is not a module, or cannot be copied; or an attribute or forward hook holds a function that would
            run the model inside the teacher, as ``model.forward = torch.compile(model.forward)`` does. The message names it.
        ValueError: the decay is out of its range; the model is sharded; the module has another architecture or shares memory
            with the model.

    Example:
        >>> import torch
        >>> from otter_losses import EMATeacher
        >>> model = torch.nn.Linear(4, 2)
        >>> teacher = EMATeacher(model, decay=0.999)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> teacher.update(model)
        >>> teacher(torch.ones(1, 4)).requires_grad
        False
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True, *, module: nn.Module | None = None) -> None:
        super().__init__()
        checks.check_decay(decay)
        self.decay = decay
        self.warmup = warmup
        model = _unwrap("model", model)
        check_copyable("model", model)
        origin = "model" if module is None else "module"
        module = copy_of(model) if module is None else _unwrap("module", module)
        check_copyable("module", module)
        leave_inference_mode(module)
        averages, currents = tensors(module), tensors(model)
        if place := difference(currents, averages):
            raise ValueError(f"module differs from the model at {place}; need one architecture. Build both by the same call.")
        if name := shared(currents, averages):
            raise ValueError(
                f"module shares {name} with the model, which would train the average; need a model of its own. Build it again: "
                "EMATeacher(model, module=build_model())."
            )
        check_functions(origin, module, model)
        own_memory(module)
        self.average = Average(module)
        self.exact = Exact()
        with torch.no_grad():
            self._take_shapes(averages, currents)
            for (name, average), current in zip(averages.items(), currents.values(), strict=True):
                self._write(name, average, current)
        self.requires_grad_(False)
        super().train(False)

    @property
    def module(self) -> nn.Module:
        self._stay_in_eval_mode()
        return self.average.module

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "module":  # which nn.Module would keep past the property
            raise AttributeError(
                f"teacher.module is set to a {type(value).__name__}; need the averaged model, which stays the one that it is. "
                "Compile the teacher, torch.compile(teacher), or the model in place, teacher.module.compile()."
            )
        super().__setattr__(name, value)

    @property
    def updates(self) -> int:
        """The number of times that `update` was called. Reading it waits for the device."""
        return int(self.average.n_averaged) - 1

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model. Call this once after each optimizer step, or let `follow` do it.

        Raises:
            ValueError: the model is not the one that the teacher was built from (it has another parameter or buffer, or a
                parameter of another shape); the model is the teacher, or shares memory with it; the teacher is sharded, and the
                model is not; the teacher is sharded and in half precision; the model or the teacher holds a
                FullyShardedDataParallel.
        """
        student = self._check_student(model)
        reshard(self.average.module)
        reshard(student)
        leave_inference_mode(self)
        averages, currents = tensors(self.average.module), tensors(student)
        self._take_shapes(averages, currents)
        for (name, average), current in zip(averages.items(), currents.values(), strict=True):
            check_sharding(name, average, current)
        count = self.average.n_averaged
        for (name, average), current in zip(averages.items(), currents.values(), strict=True):
            current = beside(average, current)
            if is_averaged(average):
                ours = precise(average, self.exact.find(name))
                current = mix(ours, current.to(ours), self._weight(count, ours.real))
            self._write(name, local(average), current)
        count += 1

    def follow(self, model: nn.Module, optimizer: HasStep) -> RemovableHandle:
        """Update the teacher after every step of the optimizer, for loops that you cannot or do not want to change.

        The teacher is updated once per step, however many batches accumulate their gradients for it, and not for a step that a
        gradient scaler skips. If several optimizers take turns, follow the last one. If a wrapper (timm's Lookahead,
        Lightning's, accelerate's) holds another optimizer, follow the one whose step leaves the weights that are to be
        averaged. This is the outermost one. The returned handle's ``remove()`` ends the following. So does following again,
        whether another optimizer or this one: a teacher follows one at a time.

        Raises:
            TypeError: the optimizer is not one, or steps inside backward.
            ValueError: the model is not the one that the teacher was built from; the optimizer has none of the model's
                parameters.

        Example:
            >>> import torch
            >>> from otter_losses import EMATeacher
            >>> model = torch.nn.Linear(4, 2)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> teacher = EMATeacher(model)
            >>> handle = teacher.follow(model, optimizer)
            >>> optimizer.step()
            >>> teacher.updates
            1
        """
        student = tensors(self._check_student(model))
        parameters = [tensor for tensor in student.values() if isinstance(tensor, nn.Parameter)]
        handle = after_each_step(optimizer, parameters, lambda: self.update(model))
        if self in _following:
            _following[self].remove()
        _following[self] = handle
        return handle

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._stay_in_eval_mode()
        return self.average(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in eval mode: a teacher uses no dropout and learns no statistics of its own."""
        return super().train(False)

    def _stay_in_eval_mode(self) -> None:
        """Also where the averaged model itself was put in another."""
        if any(module.training for module in self.modules()):
            super().train(False)

    def _weight(self, count: Tensor, like: Tensor) -> Tensor:
        """Of the student, 0-D."""
        steps = count.to(like.device, like.dtype)
        weight = 1 - self.decay + 0 * steps
        return torch.maximum(weight, 9 / (10 + steps)) if self.warmup else weight

    def _take_shapes(self, averages: dict[str, Tensor], currents: dict[str, Tensor]) -> None:
        """With the numbers, of buffers whose shape has changed, as observers' do at their first batch."""
        for (name, average), current in zip(averages.items(), currents.values(), strict=True):
            if average.shape != current.shape:
                average.data = average.new_empty(current.shape).copy_(beside(average, current))
                self.exact.keep(name, None)

    def _write(self, name: str, average: Tensor, value: Tensor) -> None:
        """Into the average, and in float32 beside it where it is in half precision."""
        average.copy_(value)
        self.exact.keep(name, in_single(value.detach()).to(average.device) if is_half(average) else None)

    def _check_student(self, model: nn.Module) -> nn.Module:
        check_not_flattened("teacher.module", self.average.module)
        student = _unwrap("model", model)
        ours, theirs = tensors(self.average.module), tensors(student)
        if name := shared(ours, theirs):
            raise ValueError(
                f"model shares {name} with the teacher, so there is nothing to learn; need the student, with tensors of its own. "
                "Pass the model that the optimizer trains."
            )
        if place := difference(ours, theirs):
            raise ValueError(
                f"model differs from the teacher at {place}; need the model that EMATeacher was built from. "
                "Build a new EMATeacher after changing the architecture."
            )
        return student

    @torch.no_grad()
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EMATeacher":
        """Casts leave the step count and, where they round the average, the average itself in float32."""
        reshard(self.average.module)
        count = self.average.n_averaged
        before = {name: (tensor.data, self.exact.find(name)) for name, tensor in tensors(self.average.module).items()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.average.n_averaged = self.average.n_averaged.to(count.dtype)
        for name, tensor in tensors(self.average.module).items():
            old, exact = before[name]
            if tensor.dtype != old.dtype and is_averaged(tensor):
                self._write(name, local(tensor), precise(old, exact))
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """States of any precision: the float32 averages go where they are kept here."""
        leave_inference_mode(self)
        ours = tensors(self.average.module)
        saved = {name: state.get(f"{prefix}average.module.{name}") for name in ours}
        name_old_keys(state, f"{prefix}exact.", saved)
        for name, tensor in ours.items():
            self.exact.keep(name, precise(tensor, self.exact.find(name)) if is_half(tensor) else None)
            place, given = f"{prefix}exact.{key(name)}", saved[name]
            exact = state.pop(place, None)
            if given is not None and (is_half(given) or is_half(tensor)):
                exact = precise(given, exact)
                state[f"{prefix}average.module.{name}"] = exact.to(tensor.dtype)
            if is_half(tensor):
                state[place] = self.exact.find(name) if exact is None else in_single(exact)
        super()._load_from_state_dict(state, prefix, *args)


def _unwrap(name: str, model: nn.Module) -> nn.Module:
    student = unwrap(name, model)
    if isinstance(student, EMATeacher):
        raise ValueError(f"{name} is an EMATeacher; need the student, with weights that are trained. Pass the optimizer's model.")
    return student
