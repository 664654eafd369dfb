"""What all loss modules share: open_clip's constructor and calling contract."""

import inspect
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from otter_losses import checks
from otter_losses.distributed import agreement
from otter_losses.distributed.dtensor import full_tensor
from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.losses import world
from otter_losses.losses.batch import Parts
from otter_losses.losses.signature import option_names, spell_out
from otter_losses.ops import dispatch

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack  # which torch depends on

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

__all__ = ["Contract", "PairLoss", "PerPairCheck", "Unpack", "check_is_loss"]

COMMON = ("reduction", "backend", "max_memory", "shard")
"""Keyword arguments of every loss function that are no options of its loss alone."""

PerPairCheck = Callable[[Any, int, torch.device], None]
"""Raises where a call's argument is not what it must be: one value for each of so many pairs on that device, or one for all."""


class Contract(TypedDict, total=False):
    """The constructor's arguments that all losses have; see `PairLoss`."""

    local_loss: bool
    gather_with_grad: bool
    cache_labels: bool
    rank: int | None
    world_size: int | None
    use_horovod: bool
    group: "ProcessGroup | None"
    uneven: bool
    reduction: Literal["mean", "none"]
    backend: str
    max_memory: int | None


class PairLoss(nn.Module):
    """A loss over a batch of pairs, called like open_clip's own losses. It has no parameters.

    If torch.distributed is initialised, the ranks share a batch. Every rank computes the rows of its own images against the
    texts of all ranks, including the transport, and returns the loss of the whole batch. No rank holds an N x N matrix. Under
    DDP the gradient of the towers is exact. The loss accepts `local_loss`, `gather_with_grad` and `cache_labels` so that
    open_clip can build it. Every combination gives that exact gradient, and there are no labels to cache.

    `group` is the process group that shares a batch, by default all processes. `rank` is this process's rank in the group, and
    `world_size` is the size of the group. They are looked up at every call unless they are given. If `world_size` is not given
    and all ranks bring the very same pairs, each rank computes the loss of those pairs alone, with a warning; see
    docs/distributed.md. ``world_size=1`` gives the loss of each process's own pairs. Copies of a loss share its group. A pickle
    leaves the group out, unless it is the group of all processes.

    Ranks may bring different numbers of pairs, as in an uneven last batch. On the CPU they always may. On a GPU, and for a
    compiled loss, this needs ``uneven=True`` on all ranks, which stops the device at every step to compare the numbers. An
    error on one rank is then an error on all.

    ``reduction="none"`` gives the loss of each of this rank's pairs, (b,). The mean over the pairs of all ranks is the loss.
    Under DDP you can take the mean over a rank's pairs of anything made of these losses, such as ``(weights * losses).mean()``.
    It has the gradient that one process with the whole batch would have. If ranks bring different numbers of pairs, take the
    sum, times the number of ranks, divided by the number of all pairs.

    A subclass names the function that it computes, and keeps the options of that function as attributes of the same names.

    Attributes:
        function: the pure function that the loss computes.
        per_pair: call options with one value per pair, and the check of such values.
        scales: call options that are numbers, or one-element tensors, which may have a gradient.
    """

    function: ClassVar[Callable[..., Tensor | Parts]]
    per_pair: ClassVar[dict[str, PerPairCheck]] = {"groups": checks.check_groups}
    scales: ClassVar[tuple[str, ...]] = ()
    _option_names: ClassVar[tuple[str, ...]] = ()
    _call_names: ClassVar[tuple[str, ...] | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            spell_out(cls.__init__, super(cls, cls).__init__)
        if hasattr(cls, "function"):
            parameters = inspect.signature(cls.function).parameters.values()
            names = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in COMMON]
            # A method of an option's name, as `OTTERLoss.official`, is not its value.
            cls._option_names = tuple(name for name in names if not callable(getattr(cls, name, None)))
            takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
            cls._call_names = None if takes_any else tuple(each.name for each in parameters if each.name != "shard")

    def __init__(
        self,
        *,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        use_horovod: bool = False,
        group: "ProcessGroup | None" = None,
        uneven: bool = False,
        reduction: Literal["mean", "none"] = "mean",
        backend: str = "auto",
        max_memory: int | None = None,
        **unknown: NoReturn,
    ) -> None:
        super().__init__()
        if not hasattr(self, "function"):
            raise NotImplementedError(f"{type(self).__name__} must name the function it computes.")
        for name in unknown:
            if name in self.per_pair:
                raise TypeError(f"{name} is no argument of {type(self).__name__}; need it in the call: loss(..., {name}={name}).")
            if isinstance(inspect.getattr_static(type(self), name, None), classmethod):
                raise TypeError(
                    f"{name} is no argument of {type(self).__name__}; need {type(self).__name__}.{name}(), which builds it."
                )
        checks.refuse_names(unknown, option_names(type(self)), type(self).__name__)
        checks.check_reduction(reduction)
        checks.check_backend(backend)
        if max_memory is not None:
            checks.check_count("max_memory", max_memory, 0)
        if world_size is not None:
            checks.check_count("world_size", world_size, 1)
        if rank is not None:
            checks.check_count("rank", rank, 0)
        if rank is not None and world_size is not None and rank >= world_size:
            raise ValueError(f"rank is {rank} and world_size {world_size}; need a rank below world_size.")
        if use_horovod:
            raise ValueError("use_horovod is True; otter_losses gathers with torch.distributed only. Launch with torchrun.")
        self._rank = rank
        self._world_size = world_size
        self._held = world.HeldGroup(group)
        self._pairs_differed = False
        self.uneven = uneven
        self.reduction = reduction
        self.backend = backend
        self.max_memory = max_memory
        if local_loss and not gather_with_grad and self.world_size > 1:
            warnings.warn(
                "local_loss is True and gather_with_grad False: in open_clip that trains the towers in a wrong direction. Here "
                "every combination gives the exact gradient; pass gather_with_grad=True to say that you want it.",
                stacklevel=3,
            )

    @property
    def group(self) -> "ProcessGroup | None":
        """The process group that shares a batch; None for all processes."""
        return self._held.group

    @group.setter
    def group(self, group: "ProcessGroup | None") -> None:
        self._held = world.HeldGroup(group)

    @property
    def rank(self) -> int:
        """The rank of this process in the group: the given one, or the current one."""
        return world.rank_in(self.group) if self._rank is None else self._rank

    @rank.setter
    def rank(self, rank: int | None) -> None:
        self._rank = rank

    @property
    def world_size(self) -> int:
        """The number of ranks in the group: the given one, or the current one."""
        return world.size_of(self.group) if self._world_size is None else self._world_size

    @world_size.setter
    def world_size(self, world_size: int | None) -> None:
        self._world_size = world_size

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the pure function, except `reduction`, `backend`, `max_memory` and `shard`."""
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

        Inside a half-precision autocast region, products take float32 features rounded to its dtype. Logits, sums and gradients
        stay float32.

        Args:
            image_features, text_features: (N, D), L2-normalised. Row i of both is pair i.
            logit_scale: the factor that multiplies the cosines, already exponentiated: a float, a 0-D tensor or shape [1]. It
                may also be the DTensor that a parameter under `fully_shard` is outside the model's forward. The same holds for
                the other scales and the bias.
            logit_bias: added to the logits; it matters to SigLIPLoss only.
            dist_image_features, dist_text_features: (N, E), a teacher's features of the same pairs. By default they are the
                student's own, detached. No gradient flows to them.
            dist_logit_scale: the teacher's scale; it matters to DistillationLoss and RobustLoss only.
            dist_logit_bias: ignored, because a constant changes no softmax.
            output_dict: return the parts, with their weights applied, instead of their sum.
            overrides: options of the constructor for this call alone, such as ``alpha=0.7`` or ``reduction="none"``. Also
                ``groups``, integers (N,): pairs with the same id (one product, one caption, one patient) are each other's
                positives.

        Returns:
            A float32 scalar (float64 for float64 features). With ``reduction="none"``, one loss per pair, (N,), or (b,) for
            this rank's pairs. With `output_dict`, a dict ``{"contrastive_loss": ..., "distill_loss": ...}`` of such values.

        Raises:
            ValueError, TypeError: the message names the argument, what came, what is needed and the fix.
        """
        if self._call_names is not None:
            unknown = [name for name in overrides if name not in self._call_names]
            checks.refuse_names(unknown, self._call_names, f"a call of {type(self).__name__}")
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
        common = {"reduction": self.reduction, "backend": self.backend, "max_memory": self.max_memory}
        options = {**self.options(), **common, **overrides}
        for name in self.scales:
            if name in options:
                options[name] = full_tensor(options[name])
        shard = WHOLE_BATCH
        if self.world_size != 1:
            more = {name: options.get(name) for name in self.scales}
            compared = {name: value for name, value in options.items() if name != "max_memory" or name in overrides}
            shard = self._agreed(features, {**scalars, **more}, compared)
        else:
            world.check_alone(self._rank, self._world_size, self.group)
        arguments = {**features, **scalars, "dist_logit_bias": dist_logit_bias, "output_dict": output_dict}
        return type(self).function(**arguments, **{"shard": shard, **options})

    def _agreed(self, features: dict[str, Any], scalars: dict[str, Tensor | float | None], options: dict[str, Any]) -> BatchShard:
        """This rank's share of the batch, once all ranks have found nothing wrong."""
        world.check_group(self._held, self.world_size)
        image = features["image_features"]
        given = {name: options[name] for name in self.per_pair if options.get(name) is not None}
        per_pair = {name: value for name, value in given.items() if isinstance(value, Tensor)}

        def check() -> None:
            world.check_place(self.rank, self.world_size, self.group)
            checks.check_features("image_features", image, "text_features", features["text_features"])
            checks.check_teacher(features["dist_image_features"], features["dist_text_features"], len(image), image.device)
            for name, value in scalars.items():
                if value is not None:
                    checks.check_scalar(name, value)
            for name, value in given.items():
                self.per_pair[name](value, len(image), image.device)
            checks.check_reduction(options["reduction"])
            checks.check_backend(options["backend"])
            dispatch.resolve(options["backend"], image, len(image))

        vectors = {name: value if value.dim() == 1 else None for name, value in per_pair.items()}
        named = {**features, **{name: vectors.get(name) for name in self.per_pair}}
        words = {name: "a tensor" if isinstance(value, Tensor) else value for name, value in options.items() if name != "groups"}
        looks = self._world_size is None and not torch.compiler.is_compiling()
        exchange = self.uneven or checks.ranks_may_talk(image) or (looks and not self._pairs_differed)
        pairs = (image, features["text_features"]) if looks else ()
        found = agreement.agree(named, scalars, f"{type(self).__name__}({words})", check, exchange, pairs, self.group)
        if found.batches == 1:
            world.warn_of_copies(self.group)
            return WHOLE_BATCH
        if found.batches < len(found.sizes):
            world.warn_of_some_copies(self.group)
        if looks:
            self._pairs_differed = True
        return BatchShard.of(self.group, found.sizes)


def check_is_loss(loss: Any) -> None:
    if not isinstance(loss, PairLoss):
        raise TypeError(f"loss is {loss!r}; need a loss of otter_losses, such as OTTERLoss().")


spell_out(PairLoss.__init__)
