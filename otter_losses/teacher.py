"""A teacher that follows its student: the exponential moving average of its weights."""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from otter_losses import checks
from otter_losses.distributed.dtensor import is_sharded

HALF = (torch.float16, torch.bfloat16)


class EMATeacher(nn.Module):
    r"""Exponential moving average of a model, for use as the distillation teacher.

    .. math:: \theta' \leftarrow d_n \theta' + (1 - d_n) \theta, \qquad d_n = \min\big(d, \tfrac{1 + n}{10 + n}\big)

    after the n-th step, counted from 1 (without warm-up, always d). Floating-point buffers, such as BatchNorm's statistics, are
    averaged as well; others, and infinite entries, are copied. Averages of float16 and bfloat16 tensors, whose small steps would
    be rounded away, are kept in float32 beside them. The teacher starts as a copy of the model, stays in eval mode whatever mode
    its parent is put in, and computes without gradient. It is saved and loaded through ``state_dict`` with its step count.

    Args:
        model: the student; wrapped in DistributedDataParallel or torch.compile or not, not yet sharded by ``fully_shard``.
        decay: d in [0, 1).
        warmup: follow fast at first, so that the teacher is not stuck at the initialisation.

    Attributes:
        module: the averaged model, for its attributes and other methods: ``teacher.module.encode_image(images)``; call those
            under ``torch.no_grad()``.

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

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; need a torch.nn.Module.")
        checks.check_number("decay", decay, low=0.0, high=1.0)
        if decay == 1:
            raise ValueError("decay is 1; need less, or the teacher never learns. The paper's is 0.999.")
        self.decay = decay
        self.warmup = warmup
        if _sharded_modules(model):
            raise ValueError(
                "model is sharded by fully_shard, which cannot be copied; build the EMATeacher before fully_shard. Then shard "
                "teacher.module in the same way, or leave it whole on every rank."
            )
        self.average = AveragedModel(_unwrap(model), avg_fn=self._mix, use_buffers=True)
        # AveragedModel replaces the average by the model at count 0; counting from 1 makes the first update an average too.
        self.average.n_averaged.fill_(1)
        self.average.requires_grad_(False)
        self.exact = _Exact(self.module)
        super().train(False)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.average.module
        return module

    @property
    def updates(self) -> int:
        """How many times `update` was called. Reading it waits for the device."""
        return int(self.average.n_averaged) - 1

    def _weight(self, count: Tensor | int, like: Tensor) -> Tensor:
        """Of the student, 0-D."""
        steps = torch.as_tensor(count, device=like.device, dtype=torch.float32)
        weight = 1 - self.decay + 0 * steps
        if self.warmup:
            weight = torch.maximum(weight, 9 / (10 + steps))
        return weight.to(like.dtype)

    def _mix(self, average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not (average.is_floating_point() or average.is_complex()):
            return current
        if average.dtype in HALF:
            return average  # averaged in `exact`
        ours = _local(average)
        ours.copy_(_lerp(ours, _beside(average, current).to(ours), self._weight(count, ours.real)))
        return average

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model; call once after each optimizer step, or let `follow` do it.

        Raises:
            ValueError: the model is not the one the teacher was built from: another parameter or buffer, or another shape;
                the teacher is sharded and the model is not, or in half precision.
        """
        student = _unwrap(model)
        self._check_same(student)
        for module in (*_sharded_modules(self.module), *_sharded_modules(student)):
            module.reshard()  # a forward without gradient leaves the shards aside
        self._check_sharding(student)
        count = self.average.n_averaged.clone()
        self.average.update_parameters(student)
        for average, exact, current in zip(_halves(self.module), self.exact.buffers(), _halves(student), strict=True):
            exact.copy_(_lerp(exact, _beside(exact, current).to(exact), self._weight(count, exact)))
            average.copy_(exact)

    def follow(self, model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
        """Update after every step of the optimizer by itself, in loops that one cannot or does not want to change.

        That is once a step, however many batches accumulate their gradients for it, and not for a step that a gradient scaler
        skips. Where several optimizers take turns, follow the last one. Wrappers that call the optimizer's own `step`
        (Lightning's, accelerate's) count as it. The returned handle's ``remove()`` ends it.

        Raises:
            TypeError: the optimizer is not one of torch's.
            ValueError: the model is not the one the teacher was built from.

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
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}; need a torch.optim.Optimizer, the one inside any wrapper."
            )
        self._check_same(_unwrap(model))
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper is an Optimizer, but has no hooks
        handle: RemovableHandle = inner.register_step_post_hook(lambda *_: self.update(model))
        return handle

    def _check_same(self, student: nn.Module) -> None:
        ours, theirs = _shapes(self.module), _shapes(student)
        if ours != theirs:
            different = next(pair for pairs in zip_longest(ours, theirs) if pairs[0] != pairs[1] for pair in pairs if pair)
            raise ValueError(
                f"model differs from the teacher at {different[0]!r}, shape {different[1]}; need the model that EMATeacher "
                "was built from. Build a new EMATeacher after changing the architecture."
            )

    def _check_sharding(self, student: nn.Module) -> None:
        for (name, average), current in zip(self.module.named_parameters(), student.parameters(), strict=True):
            if is_sharded(average) and average.dtype in HALF:
                raise ValueError(
                    f"teacher.module is sharded and {name} of dtype {average.dtype}, whose small steps are averaged in float32; "
                    "need float32 parameters, computed in half precision by fully_shard's MixedPrecisionPolicy."
                )
            if is_sharded(average) and not is_sharded(current):
                raise ValueError(
                    f"teacher.module is sharded and {name} of the model is not; need both sharded, or only the model. "
                    "Call fully_shard on the model as well."
                )

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.average(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in eval mode: a teacher drops out nothing and learns no statistics of its own."""
        return super().train(False)


def _lerp(average: Tensor, current: Tensor, weight: Tensor) -> Tensor:
    """Copies what is infinite, as entries of attention masks are: an infinity less itself is not a number."""
    return torch.where(current.isfinite(), torch.lerp(average, current, weight), current)


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's or DistributedDataParallel's wrapper."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _sharded_modules(model: nn.Module) -> list[Any]:
    """Those that `fully_shard` was called on."""
    return [module for module in model.modules() if hasattr(module, "unshard") and hasattr(module, "reshard")]


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; another tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _beside(average: Tensor, current: Any) -> Tensor:
    """The part of the current tensor that this rank has of the average."""
    if not is_sharded(current):
        return current  # type: ignore[no-any-return]
    if not is_sharded(average):
        return current.full_tensor()  # type: ignore[no-any-return]
    place: Any = average
    return _local(current.redistribute(place.device_mesh, place.placements))


def _shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tuple(tensor.shape)) for name, tensor in tensors]


def _halves(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers in half precision."""
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]


class _Exact(nn.Module):
    """Float32 copies of a model's half-precision tensors, saved and moved with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for index, tensor in enumerate(_halves(model)):
            self.register_buffer(str(index), tensor.detach().float())
