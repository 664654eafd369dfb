"""The losses as pure functions of features and numbers. Each function is in the file of its module.

Each loss returns a scalar or its parts. It is a weighted mean of what `otter_losses.ops.cross_entropy` (or `.sigmoid`) finds
for every pair from the logits ``z = s x y^T``. With ``reduction="none"`` it returns one loss per pair, (N,), instead of their
mean. Shapes: N is the number of pairs, D the width of the student's features, E the width of the teacher's. Dtypes: float64 is
computed in float64; float32, float16 and bfloat16 are computed in float32. Inside a half-precision autocast region, products
take float32 features rounded to its dtype. Logits, sums and gradients stay float32. Gradients come back in each input's own
dtype. `shard` says how several ranks share the batch, each with its own rows of every argument; the modules make it.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.losses.batch import Parts, constant, of_one_dtype
from otter_losses.losses.distillation import distillation_loss
from otter_losses.losses.info_nce import info_nce_loss
from otter_losses.losses.label_smoothing import label_smoothing_loss
from otter_losses.losses.otter import otter_loss
from otter_losses.losses.robust import robust_loss
from otter_losses.losses.siglip import siglip_loss
from otter_losses.ops import dispatch
from otter_losses.ops.eager.sinkhorn import plans
from otter_losses.ops.execution import Execution
from otter_losses.ops.groups import Groups
from otter_losses.ops.memory import computing_dtype, without_autocast
from otter_losses.ops.targets import SoftTargets, logit_range

__all__ = [
    "Parts",
    "distillation_loss",
    "info_nce_loss",
    "label_smoothing_loss",
    "otter_loss",
    "otter_targets",
    "robust_loss",
    "siglip_loss",
]


@torch.no_grad()
def otter_targets(
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    *,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
    groups: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The transported targets, for inspection: what each image is matched with besides its own text, and vice versa.

    The loss never writes them out; this function does, so it needs two N x N matrices. Autocast changes nothing here: these are
    the targets of float32 features outside of autocast.

    Args:
        dist_image_features, dist_text_features: the teacher's L2-normalised features, (N, E).
        epsilon, iterations, gamma_image, gamma_text, backend: as in `otter_losses.OTTERLoss`. Kernels are not used in tracing.
        groups: (N,) integers. Pairs with the same id are not matched with each other, unless they are more than half of all.

    Returns:
        ``M`` image to text and ``M'`` text to image, each (N, N), float32 (float64 for float64). Rows sum to 1. The diagonal is
        0, except that one pair alone has only itself. The loss's targets are ``alpha I + (1 - alpha) M``.

    Example:
        >>> import torch
        >>> from otter_losses.functional import otter_targets
        >>> image_to_text, text_to_image = otter_targets(torch.eye(2), torch.eye(2))
        >>> image_to_text
        tensor([[0., 1.],
                [1., 0.]])
    """
    checks.check_features("dist_image_features", dist_image_features, "dist_text_features", dist_text_features)
    checks.check_transport(epsilon, iterations, gamma_image, gamma_text)
    checks.check_backend(backend)
    if groups is not None:
        checks.check_groups(groups, dist_image_features.shape[0], dist_image_features.device)
    v, t = of_one_dtype(dist_image_features, dist_text_features)
    dtype = computing_dtype(v)
    soft = SoftTargets(
        image_features=v,
        text_features=t,
        inv_epsilon=constant(1 / epsilon, v.to(dtype)),
        gamma_image=gamma_image,
        gamma_text=gamma_text,
        diagonal_penalty=math.inf,
        logit_range=logit_range(epsilon, gamma_image, gamma_text, math.inf, dtype),
        iterations=iterations,
        groups=None if groups is None else Groups.of(groups, dtype).kept_apart(),
    )
    execution = Execution.resolve(dispatch.untraced(backend, v), None, WHOLE_BATCH, v).for_targets(soft)
    with without_autocast(v):
        if dispatch.is_fused(execution.backend):
            from otter_losses.ops.triton import targets

            image_to_text, image_from_text = targets.plans(soft, execution.backend)
        else:
            v, t = v.to(dtype), t.to(dtype)
            similarity = replace(soft, image_features=v, text_features=t).similarity(v, t, slice(0, v.shape[0]))
            image_to_text, image_from_text = plans(similarity, soft.logit_range, iterations, WHOLE_BATCH)
        return image_to_text, image_from_text.T
