"""Which models can be averaged, and what is said of the others."""

from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from otter_losses.distributed.dtensor import is_sharded
from otter_losses.teacher.average import is_half


def unwrap(name: str, model: nn.Module) -> nn.Module:
    """The module inside torch.compile's or DistributedDataParallel's wrapper."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a {type(model).__name__}; need a torch.nn.Module.")
    _check_not_flattened(name, model)
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def sharded_modules(model: nn.Module) -> list[Any]:
    """Those that `fully_shard` was called on."""
    return [module for module in model.modules() if hasattr(module, "unshard") and hasattr(module, "reshard")]


def check_unsharded(name: str, model: nn.Module) -> None:
    if sharded_modules(model):
        raise ValueError(
            f"{name} is sharded by fully_shard, which cannot be copied; build the EMATeacher before fully_shard. Then shard "
            "teacher.module in the same way, or leave it whole on every rank."
        )


def check_same(name: str, ours: dict[str, Tensor], other: str, theirs: dict[str, Tensor]) -> None:
    """Equal names and shapes, in one order."""
    shapes = ([(key, tuple(tensor.shape)) for key, tensor in each.items()] for each in (theirs, ours))
    for pair in zip_longest(*shapes):
        if pair[0] != pair[1]:
            key, shape = pair[0] or pair[1]
            raise ValueError(
                f"{name} differs from the {other} at {key!r}, shape {shape}; need the model that EMATeacher was built from. "
                "Build a new EMATeacher after changing the architecture."
            )


def check_sharding(name: str, average: Tensor, current: Tensor) -> None:
    if is_sharded(average) and is_half(average):
        raise ValueError(
            f"teacher.module is sharded and {name} of dtype {average.dtype}, whose small steps are averaged in float32; "
            "need float32 parameters, computed in half precision by fully_shard's MixedPrecisionPolicy."
        )
    if is_sharded(average) and not is_sharded(current):
        raise ValueError(
            f"teacher.module is sharded and {name} of the model is not; need both sharded, or only the model. "
            "Call fully_shard on the model as well."
        )


def _check_not_flattened(name: str, model: nn.Module) -> None:
    flat = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if flat or any(getattr(parameter, "_fsdp_flattened", False) for parameter in model.parameters()):
        raise ValueError(
            f"{name} holds a FullyShardedDataParallel, whose flattened weights cannot be averaged by name; need FSDP2. "
            "Build the EMATeacher from the whole model, then call torch.distributed.fsdp.fully_shard on the model."
        )
