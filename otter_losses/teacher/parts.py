"""What a teacher is made of: the averaged model with its step count, and float32 averages of what is in half precision there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from otter_losses.teacher.average import is_half


class Average(nn.Module):
    n_averaged: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("n_averaged", torch.tensor(1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Exact(nn.Module):
    """Float32 averages by the tensor's name, saved and moved with the teacher, not cast."""

    def find(self, name: str) -> Tensor | None:
        return self._buffers.get(key(name))

    def keep(self, name: str, value: Tensor | None) -> None:
        """None where the average itself is precise."""
        kept = self.find(name)
        if value is None:
            self._buffers.pop(key(name), None)
        elif kept is None:
            self.register_buffer(key(name), value.clone())
        else:
            kept.copy_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Exact":
        for name, tensor in self._buffers.items():
            assert tensor is not None
            moved = fn(tensor)
            self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once, without those of teachers in the model."""
    teachers = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, (Average, Exact)))
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in named if not name.startswith(teachers)}


def leave_inference_mode(module: nn.Module) -> None:
    """Tensors made under `torch.inference_mode`, as a rotary cache in validation, cannot be written to outside: clone them."""
    if torch.is_inference_mode_enabled():
        return
    clones: dict[int, Tensor] = {}
    for part in module.modules():
        for named in (part._parameters, part._buffers):
            for name, tensor in named.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in clones:
                        clone = tensor.clone()
                        clones[id(tensor)] = nn.Parameter(clone, False) if isinstance(tensor, nn.Parameter) else clone
                    named[name] = clones[id(tensor)]  # type: ignore[assignment]


def key(name: str) -> str:
    """Of a tensor's float32 average: a buffer's name has no dots."""
    return name.replace(".", "/")


def name_old_keys(state: dict[str, Any], prefix: str, saved: dict[str, Tensor | None]) -> None:
    """Once the float32 averages were counted, in the order of the half-precision tensors."""
    old = [f"{prefix}{index}" for index in range(len(saved)) if f"{prefix}{index}" in state]
    names = [name for name, tensor in saved.items() if tensor is not None and is_half(tensor)]
    if len(old) > len(names):  # buffers that are not saved had theirs
        names = [name for name, tensor in saved.items() if tensor is None or is_half(tensor)]
    values = [state.pop(place) for place in old]
    state.update({prefix + key(name): value for name, value in zip(names, values, strict=False)})
