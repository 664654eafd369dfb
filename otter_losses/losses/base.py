"""What all loss modules share: open_clip's constructor and calling contract."""

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from otter_losses import checks
from otter_losses.distributed import agreement
from otter_losses.distributed.dtensor import full_tensor
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses.batch import Parts
from otter_losses.ops import dispatch

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack  # which torch depends on

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

__all__ = ["Contract", "PairLoss", "PerPairCheck", "Unpack"]

EXECUTION = ("backend", "max_memory", "shard")
"""Keyword arguments of every loss function that are no options of its loss."""

PerPairCheck = Callable[[Tensor | float, int, torch.device], None]
"""Raises where a call's argument is no number, nor one for each of so many pairs on that device."""


class Contract(TypedDict, total=False):
    """The constructor's arguments that all losses have; see `PairLoss`."""

    local_loss: bool
    gather_with_grad: bool
    cache_labels: bool
    rank: int
    world_size: int
    use_horovod: bool
    group: "ProcessGroup | None"
    uneven: bool
    backend: str
    max_memory: int | None


class PairLoss(nn.Module):
    """A loss over a batch of pairs, called as open_clip calls its own. It has no parameters.

    With ``world_size`` above 1 every rank computes the rows of its own images against the texts of all ranks, transport included,
    and returns the loss of the whole batch; no rank holds an N x N matrix, and under DDP the towers' gradient is exact.
    `local_loss`, `gather_with_grad` and `cache_labels` are taken so that open_clip can build the loss; every combination gives
    that exact gradient, and there are no labels to cache.

    `group` is the process group that shares a batch, by default all processes; `rank` and `world_size` are this process's in it.
    Ranks may bring different numbers of pairs, as in an uneven last batch: on the CPU always, on a GPU and for a compiled loss
    with ``uneven=True`` on all ranks, which stops the device at every step to compare the numbers. What is wrong on one rank is
    then an error on all.

    A subclass names the function it computes, and keeps that function's options as attributes of their names.

    Attributes:
        function: the pure function beneath.
        per_pair: options that a call overrides with one value a pair, and how such values are checked.
        scales: options of a call that are numbers, or one-element tensors that may have a gradient.
    """

    function: ClassVar[Callable[..., Tensor | Parts]]
    per_pair: ClassVar[dict[str, PerPairCheck]] = {}
    scales: ClassVar[tuple[str, ...]] = ()
    _option_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if hasattr(cls, "function"):
            parameters = inspect.signature(cls.function).parameters.values()
            names = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in EXECUTION]
            # A method of an option's name, as `OTTERLoss.official`, is not its value.
            cls._option_names = tuple(name for name in names if not callable(getattr(cls, name, None)))

    def __init__(
        self,
        *,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        group: "ProcessGroup | None" = None,
        uneven: bool = False,
        backend: str = "auto",
        max_memory: int | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(self, "function"):
            raise NotImplementedError(f"{type(self).__name__} must name the function it computes.")
        checks.check_backend(backend)
        if max_memory is not None:
            checks.check_count("max_memory", max_memory, 0)
        checks.check_count("world_size", world_size, 1)
        checks.check_count("rank", rank, 0)
        if rank >= world_size:
            raise ValueError(f"rank is {rank} and world_size {world_size}; need a rank below world_size.")
        if use_horovod:
            raise ValueError("use_horovod is True; otter_losses gathers with torch.distributed only. Launch with torchrun.")
        if world_size > 1 and local_loss and not gather_with_grad:
            warnings.warn(
                "local_loss is True and gather_with_grad False: in open_clip that trains the towers in a wrong direction. Here "
                "every combination gives the exact gradient; pass gather_with_grad=True to say that you want it.",
                stacklevel=3,
            )
        self.rank = rank
        self.world_size = world_size
        self.group = group
        self.uneven = uneven
        self.backend = backend
        self.max_memory = max_memory

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the function beneath, beyond `backend`, `max_memory` and `shard`."""
        return {name: getattr(self, name) for name in self._option_names if hasattr(self, name)}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        dist_image_features: Tensor | None = None,
        dist_text_features: Tensor | None = None,
        dist_logit_scale: Tensor | float | None = None,
        dist_logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
        **overrides: Any,
    ) -> Tensor | Parts:
        """The loss of a batch.

        Args:
            image_features, text_features: (N, D), L2-normalised; row i of both is pair i.
            logit_scale: what the cosines are multiplied with, already exponentiated: a float, a 0-D tensor or shape [1]; also
                the DTensor that a parameter under `fully_shard` is outside the model's forward, as the other scales and the bias.
            logit_bias: added to the logits; matters to SigLIPLoss only.
            dist_image_features, dist_text_features: (N, E), a teacher's features of the same pairs; by default the student's own,
                detached. No gradient flows to them.
            dist_logit_scale: the teacher's scale; matters to DistillationLoss only.
            dist_logit_bias: ignored; a constant changes no softmax.
            output_dict: return the parts, weights applied, instead of their sum.

        Returns:
            A float32 scalar (float64 for float64 features), or ``{"contrastive_loss": ..., "distill_loss": ...}``.

        Raises:
            ValueError, TypeError: naming the argument, what came, what is needed and the fix.
        """
        features = {
            "image_features": image_features,
            "text_features": text_features,
            "dist_image_features": dist_image_features,
            "dist_text_features": dist_text_features,
        }
        scalars = {
            "logit_scale": full_tensor(logit_scale),
            "logit_bias": full_tensor(logit_bias),
            "dist_logit_scale": full_tensor(dist_logit_scale),
        }
        options = {**self.options(), "backend": self.backend, "max_memory": self.max_memory, **overrides}
        for name in self.scales:
            if name in options:
                options[name] = full_tensor(options[name])
        shard = WHOLE_BATCH
        if self.world_size > 1:
            more = {name: options.get(name) for name in self.scales}
            compared = {name: value for name, value in options.items() if name != "max_memory" or name in overrides}
            shard = self._agreed(features, {**scalars, **more}, compared)
        arguments = {**features, **scalars, "dist_logit_bias": dist_logit_bias, "output_dict": output_dict}
        return type(self).function(**arguments, **{"shard": shard, **options})

    def _agreed(self, features: dict[str, Any], scalars: dict[str, Tensor | float | None], options: dict[str, Any]) -> BatchShard:
        """This rank's share of the batch, once all ranks have found nothing wrong."""
        agreement.check_initialised(self.world_size)
        image = features["image_features"]
        per_pair = {name: options[name] for name in self.per_pair if isinstance(options.get(name), Tensor)}

        def check() -> None:
            agreement.check_world(self.rank, self.world_size, self.group)
            checks.check_features("image_features", image, "text_features", features["text_features"])
            checks.check_teacher(features["dist_image_features"], features["dist_text_features"], len(image), image.device)
            for name, value in scalars.items():
                if value is not None:
                    checks.check_scalar(name, value)
            for name, value in per_pair.items():
                self.per_pair[name](value, len(image), image.device)
            checks.check_backend(options["backend"])
            dispatch.resolve(options["backend"], image, len(image))

        vectors = {name: value if value.dim() == 1 else None for name, value in per_pair.items()}
        named = {**features, **{name: vectors.get(name) for name in self.per_pair}}
        words = {name: "a tensor" if isinstance(value, Tensor) else value for name, value in options.items()}
        exchange = self.uneven or checks.ranks_may_talk(image)
        sizes = agreement.agree(named, scalars, f"{type(self).__name__}({words})", check, exchange, self.group)
        return BatchShard.of(self.group, sizes)
