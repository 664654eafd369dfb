"""What the adapters ask of a teacher, and how they call it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_separate(teacher: nn.Module, model: nn.Module) -> None:
    """That the model trains none of the teacher's weights; what is frozen, as a locked tower or LoRA's base, both may hold."""
    held = {_memory(parameter): name for name, parameter in teacher.named_parameters(remove_duplicate=False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _memory(parameter) in held:
            raise ValueError(
                f"teacher shares {held[_memory(parameter)]!r} with the model, which trains it as {name!r}; need weights of its "
                "own, or frozen ones. Use EMATeacher(model), or copy.deepcopy(model) for a teacher that stays as it is."
            )
    if any(module is model for module in teacher.modules()):
        raise ValueError("teacher is or contains the model that it teaches; need another module. Use copy.deepcopy(model).")


@contextmanager
def teaching(teacher: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient, whatever mode the teacher is in; then back to it, as the student may share a frozen part."""
    training = [module for module in teacher.modules() if getattr(module, "training", False)]  # a frozen script has none
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _memory(tensor: Tensor) -> int:
    """Where a parameter's numbers lie; its identity where they have no address: not yet made, on the meta device, or sharded."""
    return (0 if is_lazy(tensor) else tensor.data_ptr()) or id(tensor)
