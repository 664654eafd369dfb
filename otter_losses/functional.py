"""The losses as pure functions: features and numbers in, a scalar or its parts out.

All of them are weighted means of what `otter_losses.ops.soft_target` (or `.sigmoid`) finds for every pair from the logits
``z = s x y^T``. Shapes: N pairs, D the width of the student's features, E that of the teacher's. Dtypes: float64 is computed in
float64; float32, float16 and bfloat16 in float32, also under autocast; gradients come back in each input's own dtype. `world`
says how several ranks share the batch, each with its own rows of every argument; the modules make it.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from otter_losses import checks, released
from otter_losses.ops import contract, dispatch
from otter_losses.ops import sigmoid as _sigmoid
from otter_losses.ops import soft_target as _soft_target
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.transport import Kernel, diagonal_vanishes, solve
from otter_losses.ops.world import ALONE, World, mean

Parts = dict[str, Tensor]


def otter_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    alpha: Tensor | float = 0.5,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
    distill_logit_scale: Tensor | float | None = None,
    scope: Literal["global", "local"] = "global",
    official: bool = False,
    backend: str = "auto",
    max_memory: int | None = None,
    world: World = ALONE,
) -> Tensor | Parts:
    """Optimal transport distillation (OTTER). See `otter_losses.OTTERLoss` for the equation and the arguments.

    Example:
        >>> import torch
        >>> from otter_losses.functional import otter_loss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> otter_loss(x, y, 14.3, alpha=0.5).shape
        torch.Size([])
    """
    x, y, texts, scale = _student(image_features, text_features, logit_scale, logit_bias, backend, max_memory, world)
    checks.check_alpha(alpha, len(x), x.device)
    checks.check_transport(epsilon, iterations, gamma_image, gamma_text)
    checks.check_scope(scope, official)
    second = None if distill_logit_scale is None else _scalar("distill_logit_scale", distill_logit_scale, x)
    if official and world:
        checks.check_teacher(dist_image_features, dist_text_features, len(x), x.device)
        v = x if dist_image_features is None else dist_image_features
        t = y if dist_text_features is None else dist_text_features
        scales = scale, scale if second is None else second
        parts = released.losses(x, y, v, t, *scales, epsilon, iterations, gamma_image, gamma_text, world)
        return _combine(alpha, *parts, logit_bias, output_dict, world)
    shares = _shares(alpha, world.pairs(len(x)))
    local = scope == "local" and bool(world)
    among = world if shares and not local else ALONE
    teacher = _teacher(x, dist_image_features, dist_text_features, among)
    penalty = 100 * (gamma_image + gamma_text) if official else math.inf

    def of_pairs(room: int) -> tuple[Tensor, Tensor]:
        """The losses of given and of transported targets within the ranks that transport."""
        losses: Tensor = _soft_target.soft_target(
            x,
            y,
            texts if among else None,
            scale if second is None else second,
            *teacher,
            x.new_full((), 1 / epsilon, dtype=contract.computing(x)),
            gamma_image,
            gamma_text,
            penalty,
            _spread(epsilon, gamma_image, gamma_text, penalty, scale.dtype),
            iterations,
            official,
            1.0,
            0.0,
            room,
            backend,
            among.name,
            among.counts,
        )[0]
        return losses.unbind()  # type: ignore[return-value]

    def of_given(scale: Tensor, room: int) -> Tensor:
        return _contrastive(x, y, texts, scale, room, backend, world)

    if not shares:
        contrastive = of_given(scale, _room(max_memory))
        distill = torch.zeros_like(contrastive)
        if second is not None:
            distill = distill + 0 * second  # a parameter that DDP expects a gradient of
    elif local:
        room = _room(max_memory, 2 if second is None else 3)
        whole = of_given(scale if second is None else second, room)
        contrastive = whole if second is None else of_given(scale, room)
        distill = whole
        if len(x) > 1:
            given, transported = of_pairs(room)
            distill = whole + (transported - given)  # the softmaxes within the block cancel
    else:
        # Two matrices of the transported part share the memory with one of a contrastive part at another scale.
        contrastive, distill = of_pairs(_room(max_memory) if second is None else _room(max_memory, 3, all_but=1))
        if second is not None:
            contrastive = of_given(scale, _room(max_memory, 3))
    if official:
        contrastive, distill = 2 * contrastive, 2 * distill  # the released code sums the directions
    return _combine(alpha, contrastive, distill, logit_bias, output_dict, world)


def info_nce_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    backend: str = "auto",
    max_memory: int | None = None,
    world: World = ALONE,
) -> Tensor | Parts:
    """The plain CLIP loss. See `otter_losses.InfoNCELoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import info_nce_loss
        >>> round(float(info_nce_loss(torch.eye(4), torch.eye(4), 1.0)), 4)
        0.7437
    """
    x, y, texts, scale = _student(image_features, text_features, logit_scale, logit_bias, backend, max_memory, world)
    value = _contrastive(x, y, texts, scale, _room(max_memory), backend, world)
    return _output({"contrastive_loss": mean(value, world)}, logit_bias, output_dict)


def label_smoothing_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    smoothing: float = 0.1,
    convention: Literal["paper", "torch"] = "paper",
    backend: str = "auto",
    max_memory: int | None = None,
    world: World = ALONE,
) -> Tensor | Parts:
    """InfoNCE with smoothed targets. See `otter_losses.LabelSmoothingLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import label_smoothing_loss
        >>> round(float(label_smoothing_loss(torch.eye(4), torch.eye(4), 1.0, smoothing=0.1)), 4)
        0.8437
    """
    x, y, texts, scale = _student(image_features, text_features, logit_scale, logit_bias, backend, max_memory, world)
    checks.check_smoothing(smoothing, convention)
    n = world.pairs(len(x))
    if convention == "torch":
        share = smoothing / n
        own = 1 - smoothing
    else:
        share = smoothing / (n - 1) if n > 1 else 0.0
        own = 1 - smoothing - share if n > 1 else 1.0
    value = _contrastive(x, y, texts, scale, _room(max_memory), backend, world, own, share)
    return _output({"contrastive_loss": mean(value, world)}, logit_bias, output_dict)


def distillation_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    alpha: Tensor | float = 0.5,
    epsilon: float | None = None,
    gamma_image: float = 0.0,
    gamma_text: float = 0.0,
    remove_diagonal: bool = False,
    backend: str = "auto",
    max_memory: int | None = None,
    world: World = ALONE,
) -> Tensor | Parts:
    """InfoNCE beside soft labels from a teacher's row softmaxes. See `otter_losses.DistillationLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import distillation_loss
        >>> x, y = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
        >>> sorted(distillation_loss(x, y, 14.3, output_dict=True))
        ['contrastive_loss', 'distill_loss']
    """
    x, y, texts, scale = _student(image_features, text_features, logit_scale, logit_bias, backend, max_memory, world)
    n = world.pairs(len(x))
    checks.check_alpha(alpha, len(x), x.device)
    checks.check_transport(1.0 if epsilon is None else epsilon, 1, gamma_image, gamma_text)
    shares = _shares(alpha, n)
    v, t = _teacher(x, dist_image_features, dist_text_features, world if shares else ALONE)
    if not shares:
        contrastive = _contrastive(x, y, texts, scale, _room(max_memory), backend, world)
        return _combine(alpha, contrastive, torch.zeros_like(contrastive), logit_bias, output_dict, world)
    if epsilon is None:
        sharpness = (scale if dist_logit_scale is None else _scalar("dist_logit_scale", dist_logit_scale, x)).detach()
    else:
        sharpness = x.new_full((), 1 / epsilon, dtype=contract.computing(x))
    penalty = math.inf if remove_diagonal else 0.0
    losses: Tensor = _soft_target.soft_target(
        x,
        y,
        texts,
        scale,
        v,
        t,
        sharpness,
        gamma_image,
        gamma_text,
        penalty,
        None if epsilon is None else _spread(epsilon, gamma_image, gamma_text, penalty, scale.dtype),
        0,
        False,
        1.0,
        0.0,
        _room(max_memory),
        backend,
        world.name,
        world.counts,
    )[0]
    contrastive, distill = losses.unbind()
    return _combine(alpha, contrastive, distill, logit_bias, output_dict, world)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    dist_logit_scale: Tensor | float | None = None,
    dist_logit_bias: Tensor | float | None = None,
    output_dict: bool = False,
    *,
    backend: str = "auto",
    max_memory: int | None = None,
    world: World = ALONE,
) -> Tensor | Parts:
    """The pairwise sigmoid loss. See `otter_losses.SigLIPLoss`.

    Example:
        >>> import torch
        >>> from otter_losses.functional import siglip_loss
        >>> round(float(siglip_loss(torch.eye(2), torch.eye(2), 10.0, -10.0)), 4)
        0.6932
    """
    x, y, texts, scale = _student(image_features, text_features, logit_scale, logit_bias, backend, max_memory, world)
    bias = _scalar("logit_bias", 0.0 if logit_bias is None else logit_bias, x)
    value = _sigmoid.sigmoid(x, y, texts, scale, bias, _room(max_memory), backend, world.name, world.counts)[0]
    return _output({"contrastive_loss": mean(value, world)}, None, output_dict)


@torch.no_grad()
def otter_targets(
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    *,
    epsilon: float = 0.15,
    iterations: int = 5,
    gamma_image: float = 1.0,
    gamma_text: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The transported targets themselves, for looking at: what each image is matched with beside its own text, and vice versa.

    The loss never writes them; this function does, so it needs two N x N matrices.

    Args:
        dist_image_features, dist_text_features: the teacher's L2-normalised features, (N, E).
        epsilon, iterations, gamma_image, gamma_text: as in `otter_losses.OTTERLoss`.

    Returns:
        ``M`` image to text and ``M'`` text to image, each (N, N), float32 (float64 for float64): rows sum to 1 and the diagonal
        is 0, except that one pair alone has only itself. The loss's targets are ``alpha I + (1 - alpha) M``.

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
    dtype = _compute_dtype(dist_image_features, dist_text_features)
    v, t = dist_image_features.to(dtype), dist_text_features.to(dtype)
    if len(v) == 1:
        return v.new_ones(1, 1), v.new_ones(1, 1)
    with torch.autocast(v.device.type, enabled=False):
        similarity = Similarity(v, t, v.new_full((), 1 / epsilon), gamma_image, gamma_text, math.inf)
        kernel = Kernel.build(similarity, _spread(epsilon, gamma_image, gamma_text, math.inf, dtype), store=True)
        image_columns, text_rows, text_columns = solve(kernel, iterations)
        domain, matrix = kernel.domain, kernel.block(slice(0, len(v)))
        image_rows = domain.match(domain.enter(torch.ones_like(v[:, 0])), domain.row_sums(matrix, image_columns))
        image_to_text = domain.plan(matrix, image_rows, image_columns)
        return image_to_text, domain.plan(matrix, text_rows, text_columns).T


def _of_one_dtype(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Float64, float32 or, where both are of it, one of the half precisions."""
    dtype = image.dtype if image.dtype == text.dtype else _compute_dtype(image, text)
    return checks.savable(image).to(dtype), checks.savable(text).to(dtype)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _scalar(name: str, value: Tensor | float, like: Tensor) -> Tensor:
    checks.check_scalar(name, value)
    dtype = contract.computing(like)
    if isinstance(value, Tensor):
        return checks.savable(value).to(like.device, dtype).reshape(())
    return like.new_ones((), dtype=dtype) * value  # new_full would make torch.compile specialise on every value


def _student(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None,
    backend: str,
    max_memory: int | None,
    world: World,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """This rank's image and text features; the text features of all ranks, as constants, where there are others; the scale."""
    checks.check_backend(backend)
    if max_memory is not None:
        checks.check_count("max_memory", max_memory, 0)
    checks.check_features("image_features", image_features, "text_features", text_features)
    if logit_bias is not None:
        checks.check_scalar("logit_bias", logit_bias)
    x, y = _of_one_dtype(image_features, text_features)
    dispatch.check_usable(backend, x)
    scale = _scalar("logit_scale", logit_scale, x)
    return x, y, world.gather(y) if world else None, scale


def _teacher(x: Tensor, v: Tensor | None, t: Tensor | None, world: World) -> tuple[Tensor | None, Tensor | None]:
    """The teacher's features of all ranks, as constants; None stands for the student's own, of this rank and of all."""
    checks.check_teacher(v, t, len(x), x.device)
    if v is None or t is None:
        return (world.gather(x) if world else None), None
    v, t = _of_one_dtype(v.detach(), t.detach())
    dtype = contract.computing(x)
    if not (v.dtype.itemsize < dtype.itemsize and dtype == torch.float32):
        v, t = v.to(dtype), t.to(dtype)
    return world.gather(v), world.gather(t)


def _room(max_memory: int | None, parts: int = 1, all_but: int = 0) -> int:
    """One of so many parts of the memory, or all but so many."""
    if max_memory is None:
        return dispatch.BY_DEVICE
    return max_memory - all_but * (max_memory // parts) if all_but else max_memory // parts


def _shares(alpha: Tensor | float, pairs: int) -> bool:
    """Whether any target is shared out beside the given pairs."""
    return pairs > 1 and (isinstance(alpha, Tensor) or alpha < 1)


def _spread(epsilon: float, gamma_image: float, gamma_text: float, penalty: float, dtype: torch.dtype) -> float:
    """No two of a unit-norm teacher's logits are further apart, a diagonal that vanishes aside."""
    lowered = 0.0 if diagonal_vanishes(penalty / epsilon, dtype) else penalty
    return (2 * (gamma_image + gamma_text + 1) + lowered) / epsilon


def _contrastive(
    x: Tensor,
    y: Tensor,
    texts: Tensor | None,
    scale: Tensor,
    room: int,
    backend: str,
    world: World,
    own: float = 1.0,
    share: float = 0.0,
) -> Tensor:
    """Cross entropy of every given pair, mean of its two directions, (N,)."""
    losses: Tensor = _soft_target.soft_target(
        x, y, texts, scale, None, None, None, 0.0, 0.0, 0.0, None, 0, False, own, share, room, backend, world.name, world.counts
    )[0]
    return losses[0]


def _combine(
    alpha: Tensor | float,
    contrastive: Tensor,
    distill: Tensor,
    logit_bias: Tensor | float | None,
    output_dict: bool,
    world: World,
) -> Tensor | Parts:
    prior: Any = checks.savable(alpha).to(contrastive) if isinstance(alpha, Tensor) else alpha
    parts = {"contrastive_loss": mean(prior * contrastive, world), "distill_loss": mean((1 - prior) * distill, world)}
    return _output(parts, logit_bias, output_dict)


def _output(parts: Parts, logit_bias: Tensor | float | None, output_dict: bool) -> Tensor | Parts:
    if isinstance(logit_bias, Tensor):
        # Softmaxes do not see a common bias: its gradient is zero, which DDP wants rather than none.
        first = parts["contrastive_loss"]
        parts["contrastive_loss"] = first + 0 * logit_bias.reshape(()).to(first)
    if output_dict:
        return parts
    value = parts["contrastive_loss"]
    return value + parts["distill_loss"] if "distill_loss" in parts else value
