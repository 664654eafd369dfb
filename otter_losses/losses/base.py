"""What all loss modules share: open_clip's constructor and calling contract."""

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from otter_losses import checks, distributed
from otter_losses.functional import Parts
from otter_losses.ops import dispatch
from otter_losses.ops.world import ALONE, World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it

Features = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
COMPARED = ("image_features", "text_features", "dist_image_features", "dist_text_features", "alpha")


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
    """

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
        """Keyword arguments of the function beneath, beyond `backend` and `max_memory`."""
        return {}

    def compute(self, *args: Any, **kwargs: Any) -> Tensor | Parts:
        """The function beneath."""
        raise NotImplementedError(f"{type(self).__name__} must name the function it computes.")

    def _agreed(self, features: Features, scalars: dict[str, Tensor | float | None], overrides: dict[str, Any]) -> World:
        """How the ranks share the batch, once all of them have found nothing wrong."""
        distributed.check_initialised(self.world_size)
        image, text, dist_image, dist_text = features
        alpha, backend = overrides.get("alpha"), overrides.get("backend", self.backend)

        def check() -> None:
            distributed.check_world(self.rank, self.world_size, self.group)
            checks.check_features("image_features", image, "text_features", text)
            checks.check_teacher(dist_image, dist_text, len(image), image.device)
            for name, value in scalars.items():
                if value is not None:
                    checks.check_scalar(name, value)
            if isinstance(alpha, Tensor):
                checks.check_alpha(alpha, len(image), image.device)
            checks.check_backend(backend)
            dispatch.check_usable(backend, image)

        per_pair = alpha if isinstance(alpha, Tensor) and alpha.dim() == 1 else None
        named = dict(zip(COMPARED, (*features, per_pair), strict=True))
        exchange = self.uneven or checks.ranks_may_talk(image)
        options = {**self.options(), "backend": backend, **overrides}
        words = {name: "a tensor" if isinstance(value, Tensor) else value for name, value in options.items()}
        counts = distributed.agree(named, scalars, f"{type(self).__name__}({words})", check, exchange, self.group)
        return World.of(self.group, counts)

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
        logit_scale, logit_bias, dist_logit_scale = map(distributed.whole, (logit_scale, logit_bias, dist_logit_scale))
        if "distill_logit_scale" in overrides:
            overrides["distill_logit_scale"] = distributed.whole(overrides["distill_logit_scale"])
        features = (image_features, text_features, dist_image_features, dist_text_features)
        world = ALONE
        if self.world_size > 1:
            scalars = {"logit_scale": logit_scale, "logit_bias": logit_bias, "dist_logit_scale": dist_logit_scale}
            second = {"distill_logit_scale": overrides.get("distill_logit_scale")}
            world = self._agreed(features, {**scalars, **second}, overrides)
        return self.compute(
            *features[:2],
            logit_scale,
            logit_bias,
            *features[2:],
            dist_logit_scale,
            dist_logit_bias,
            output_dict,
            **{**self.options(), "backend": self.backend, "max_memory": self.max_memory, "world": world, **overrides},
        )
