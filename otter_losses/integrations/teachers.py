"""What the adapters ask of a teacher, and how they call it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_separate(teacher: Any, model: nn.Module) -> None:
    """That the model trains none of the teacher's weights; what is frozen, as a locked tower or LoRA's base, both may hold."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(
            f"teacher is a {type(teacher).__name__}; need a torch.nn.Module, called as the model is. Load or wrap it."
        )
    held = {name: _addresses(parameter) for name, parameter in teacher.named_parameters(remove_duplicate=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            place = _addresses(parameter)
            for shared, other in held.items():
                if place.start < other.stop and other.start < place.stop:
                    raise ValueError(
                        f"teacher shares {shared!r} with the model, which trains it as {name!r}; need weights of its own, or "
                        "frozen ones. Use EMATeacher(model), or copy.deepcopy(model) for a teacher that stays as it is."
                    )
    if any(module is model for module in teacher.modules()):
        raise ValueError("teacher is or contains the model that it teaches; need another module. Use copy.deepcopy(model).")


class Teaching:
    """How a teacher is called, and a second look, at the first call in training, for what both hold and was unfrozen since."""

    def __init__(self) -> None:
        self._checked: nn.Module | None = None

    @contextmanager
    def __call__(self, teacher: nn.Module, model: nn.Module) -> Iterator[None]:
        """Eval mode and no gradient, whatever mode the teacher is in; then back to it, as the student may share a frozen part."""
        if model.training and self._checked is not teacher and not torch.compiler.is_compiling():
            check_separate(teacher, model)
            self._checked = teacher
        training = [module for module in teacher.modules() if getattr(module, "training", False)]  # a frozen script has none
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def _addresses(tensor: Tensor) -> range:
    """Where a parameter's numbers lie; its identity where they have no address: not yet made, on the meta device, or sharded."""
    first = 0 if is_lazy(tensor) else tensor.data_ptr()
    if not first:
        return range(id(tensor), id(tensor) + 1)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return range(first, first + (last + 1) * tensor.element_size())
