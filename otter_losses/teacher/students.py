"""Which models can be averaged, and what is said of the others."""

from itertools import zip_longest
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from otter_losses.distributed.dtensor import is_sharded
from otter_losses.teacher.average import is_half


def unwrap(name: str, model: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DistributedDataParallel's or Fabric's wrapper."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} is a {type(model).__name__}; need a torch.nn.Module.")
    check_not_flattened(name, model)
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif all(isinstance(getattr(model, part, None), nn.Module) for part in ("_forward_module", "_original_module")):
            model = model._original_module  # type: ignore[assignment]
        else:
            return model


def reshard(model: nn.Module) -> None:
    """Bring back the shards, which a forward without gradient leaves aside."""
    for module in _sharded_modules(model):
        module.reshard()


def check_copyable(name: str, model: nn.Module) -> None:
    """Whole, and with all its shapes."""
    if lazy := next((key for key, parameter in model.named_parameters() if is_lazy(parameter)), None):
        raise ValueError(f"{name}.{lazy} has no shape yet; need a model that is initialised. Run a batch through it first.")
    if _sharded_modules(model):
        raise ValueError(
            f"{name} is sharded by fully_shard, which cannot be copied; build the EMATeacher before fully_shard. Then shard "
            "teacher.module in the same way, or leave it whole on every rank."
        )


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    """The first name, or shape of a parameter, that is not in the same place of both; buffers may grow."""
    pairs = zip_longest(ours.items(), theirs.items())
    different = next((first or second for first, second in pairs if not (first and second and _fit(first, second))), None)
    return different and f"{different[0]!r}, shape {tuple(different[1].shape)}"


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


def check_not_flattened(name: str, model: nn.Module) -> None:
    flat = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if flat or any(getattr(parameter, "_fsdp_flattened", False) for parameter in model.parameters()):
        raise ValueError(
            f"{name} holds a FullyShardedDataParallel, whose flattened weights cannot be averaged by name; need FSDP2. "
            "Build the EMATeacher from the whole model, then call torch.distributed.fsdp.fully_shard on the model."
        )


def _sharded_modules(model: nn.Module) -> list[Any]:
    """Those that `fully_shard` was called on."""
    return [module for module in model.modules() if hasattr(module, "unshard") and hasattr(module, "reshard")]


def _fit(first: tuple[str, Tensor], second: tuple[str, Tensor]) -> bool:
    (name, ours), (other, theirs) = first, second
    fixed = isinstance(ours, nn.Parameter) or isinstance(theirs, nn.Parameter)
    return name == other and (ours.shape == theirs.shape or not fixed)
