"""What is wrong with an argument, said at the public edge: its name, what came, what is needed, and the fix.

Shapes, types and Python numbers are always checked. The contents of tensors are checked where a look is free, that is on the
CPU outside `torch.compile`; on other devices a look would stop the device at every step, so there it happens in debug mode
only (`set_debug`, or the environment variable ``OTTER_LOSSES_DEBUG=1``), and a NaN that comes in comes out.
"""

import math
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real

import torch
from torch import Tensor

from otter_losses.distributed.dtensor import is_sharded
from otter_losses.ops.domains import has_numbers, has_tangent, largest_logit, reads_freely

_debug = os.environ.get("OTTER_LOSSES_DEBUG", "0") not in ("", "0")

BACKENDS = ("auto", "torch", "triton", "cuda")

LARGEST = 1e15
"""Of features and scales. Beyond, their products leave float32."""

SMALLEST_EPSILON = 1e-30


def set_debug(enabled: bool) -> None:
    """Turn the checks that read tensors on any device, and the check of unit norms, on or off for this process.

    Example:
        >>> import otter_losses
        >>> otter_losses.set_debug(True)
        >>> x = 10 * torch.eye(4)
        >>> otter_losses.InfoNCELoss()(x, x, 1.0)
        Traceback (most recent call last):
            ...
        ValueError: image_features has row norms from 10 to 10; need 1. Use torch.nn.functional.normalize(features, dim=-1).
        >>> otter_losses.set_debug(False)
    """
    global _debug
    _debug = enabled


def may_read(tensor: Tensor) -> bool:
    """Whether looking at the tensor's values now costs nothing, or was asked for."""
    return has_numbers(tensor) and (reads_freely(tensor) or _debug)


def ranks_may_talk(features: object) -> bool:
    """Whether comparing what the ranks bring costs little, or was asked for; on a CPU one answer on all, whatever one brings."""
    return not torch.compiler.is_compiling() and (_debug or not isinstance(features, Tensor) or reads_freely(features))


def savable(tensor: Tensor) -> Tensor:
    """The tensor, copied if it was made under `torch.inference_mode`: autograd keeps no such tensor for its backward."""
    return tensor.clone() if not torch.compiler.is_compiling() and tensor.is_inference() else tensor


def check_backend(backend: str, shipped: tuple[str, ...] = BACKENDS) -> None:
    """One of the names, and with kernels for what is asked."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; need one of {', '.join(map(repr, BACKENDS))}.")
    if backend not in shipped:
        raise RuntimeError(
            f"backend={backend!r} is not there: this version of otter_losses ships no {backend} kernels for it. "
            f"Use {' or '.join(map(repr, shipped))}."
        )


def check_number(name: str, value: float, *, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    """A finite number in [low, high], or (low, high] with `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} is a {type(value).__name__}; need a number.")
    if not low <= value <= high or abs(value) == math.inf or (above and value == low):
        bounds = f"above {low:g}" if above else f"of at least {low:g}"
        bounds += f" and at most {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} is {value}; need a finite number {bounds}.")


def check_count(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; need an int of at least {low}.")
    if value < low:
        raise ValueError(f"{name} is {value}; need an int of at least {low}.")


def check_epsilon(epsilon: float) -> None:
    check_number("epsilon", epsilon, low=0.0, above=True)
    if epsilon < SMALLEST_EPSILON:
        raise ValueError(f"epsilon is {epsilon}; need at least {SMALLEST_EPSILON:g}. Small values take hard matches already.")


def check_transport(epsilon: float, iterations: int, gamma_image: float, gamma_text: float) -> None:
    check_epsilon(epsilon)
    check_count("iterations", iterations, 1)
    check_number("gamma_image", gamma_image, low=0.0)
    check_number("gamma_text", gamma_text, low=0.0)


def check_scope(scope: str, official: bool) -> None:
    if scope not in ("global", "local"):
        raise ValueError(
            f"scope is {scope!r}; need 'global', transport among the pairs of all ranks, or 'local', within each rank's."
        )
    if official and scope == "local":
        raise ValueError(
            "scope is 'local' and the loss official(); the released arithmetic transports globally. Use OTTERLoss()."
        )


def check_decay(decay: float) -> None:
    check_number("decay", decay, low=0.0, high=1.0)
    if decay == 1:
        raise ValueError("decay is 1; need less, or the teacher never learns. The paper's is 0.999.")


LEAST_Q = 1e-30
"""Whose products float32 can hold."""


def check_q(q: float) -> None:
    check_number("q", q, low=0.0, high=1.0)
    if 0 < q < LEAST_Q:
        raise ValueError(f"q is {q}; need 0, or a number from {LEAST_Q} to 1. Take q=0, the cross entropy.")


def check_official(official: bool, groups: Tensor | None, q: float) -> None:
    if official and (groups is not None or q):
        what = f"q is {q}" if q else "groups were given"
        raise ValueError(f"{what} and the loss official(); the released arithmetic has neither q nor groups. Use OTTERLoss().")


def check_smoothing(smoothing: float, convention: str) -> None:
    check_number("smoothing", smoothing, low=0.0, high=1.0)
    if convention not in ("paper", "torch"):
        raise ValueError(f"convention is {convention!r}; need 'paper' or 'torch'.")


def check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; need a torch.Tensor.")
    if is_sharded(tensor):
        raise TypeError(
            f"{name} is a DTensor; need a plain tensor of this rank's pairs, as {name}.to_local() of sharded rows is."
        )
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} has dtype {tensor.dtype}; need float64, float32, float16 or bfloat16. Convert: {name}.float().")


def check_finite(name: str, tensor: Tensor) -> None:
    """Finite, and at most `LARGEST` in magnitude."""
    if may_read(tensor) and tensor.numel():
        values = tensor.detach()
        low, high = (float(bound) for bound in torch.aminmax(values))
        if low >= -LARGEST and high <= LARGEST:
            return
        finite = torch.isfinite(values)
        if bool(finite.all()):
            raise ValueError(f"{name} has values from {low:g} to {high:g}; need magnitudes of at most {LARGEST:g}. Normalise.")
        place = tuple(int(index) for index in (~finite).nonzero()[0])
        found = f"holds {float(values[place])} at {list(place)}" if place else f"is {float(values)}"
        raise ValueError(
            f"{name} {found}; need finite numbers. Look for a division by zero, "
            "an overflow in half precision or a learning rate that is too high upstream."
        )


def check_untransformed(name: str, tensor: Tensor) -> None:
    """Not inside a transform that would not see the analytic gradients and return zeros."""
    if not torch.compiler.is_compiling() and (torch._C._functorch.is_functorch_wrapped_tensor(tensor) or has_tangent(tensor)):
        raise RuntimeError(
            f"{name} is inside a transform of torch.func or forward-mode differentiation, which the analytic gradients of "
            "otter_losses do not take part in. Use backward() or torch.autograd.grad, or the functions of "
            "otter_losses.ops.reference, which autograd differentiates in any mode."
        )


def check_features(image_name: str, image: Tensor, text_name: str, text: Tensor) -> None:
    """Two matrices (N, D) of one shape and device, N of at least 1, finite; of unit rows in debug mode."""
    for name, tensor in ((image_name, image), (text_name, text)):
        check_floating(name, tensor)
        if tensor.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; need (N, D), one row a pair.")
    if image.shape != text.shape:
        raise ValueError(
            f"{image_name} has shape {tuple(image.shape)} and {text_name} {tuple(text.shape)}; need the same (N, D): "
            "row i of both is pair i, projected to one width."
        )
    if image.device != text.device:
        raise ValueError(f"{image_name} is on {image.device} and {text_name} on {text.device}; need one device.")
    if image.numel() == 0:
        raise ValueError(
            f"{image_name} and {text_name} are empty, shape {tuple(image.shape)}; need at least one pair and one feature."
        )
    for name, tensor in ((image_name, image), (text_name, text)):
        check_untransformed(name, tensor)
        check_finite(name, tensor)
        if _debug and may_read(tensor):
            norms = torch.linalg.vector_norm(tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)), dim=1)
            low, high = float(norms.min()), float(norms.max())
            if low < 0.98 or high > 1.02:
                raise ValueError(
                    f"{name} has row norms from {low:.4g} to {high:.4g}; need 1. "
                    "Use torch.nn.functional.normalize(features, dim=-1)."
                )


def check_teacher(image: Tensor | None, text: Tensor | None, pairs: int, device: torch.device) -> None:
    if image is None or text is None:
        if image is not text:
            missing = "dist_image_features" if image is None else "dist_text_features"
            raise ValueError(f"{missing} is None but its counterpart is not; a teacher needs both, or neither for self-teaching.")
        return
    check_features("dist_image_features", image, "dist_text_features", text)
    if image.shape[0] != pairs:
        raise ValueError(
            f"dist_image_features has {image.shape[0]} rows and image_features {pairs}; "
            "need the teacher's features of the same pairs."
        )
    if image.device != device:
        raise ValueError(f"dist_image_features is on {image.device} and image_features on {device}; need one device.")


def check_scalar(name: str, value: Tensor | float) -> None:
    """A number, or a tensor of one element of any shape; finite."""
    if is_sharded(value):
        raise TypeError(
            f"{name} is a DTensor; need a plain tensor. Return it from the model's forward, or call the loss's module."
        )
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}; need a real number.")
        if value.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; need one number: a float, a 0-D tensor or shape [1].")
        check_finite(name, value.reshape(()))
    else:
        check_number(name, value, low=-LARGEST, high=LARGEST)


def check_alpha(alpha: Tensor | float, pairs: int, device: torch.device) -> None:
    """A number in [0, 1], or one for each pair."""
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, low=0.0, high=1.0)
        return
    check_floating("alpha", alpha)
    if alpha.requires_grad:
        raise ValueError("alpha requires a gradient; it is a given prior and none flows to it. Pass alpha.detach().")
    if alpha.dim() > 1 or alpha.numel() not in (1, pairs):
        raise ValueError(f"alpha has shape {tuple(alpha.shape)}; need a number or shape ({pairs},), one value a pair.")
    if alpha.device != device and alpha.dim() == 1:
        raise ValueError(f"alpha is on {alpha.device} and image_features on {device}; need one device.")
    if may_read(alpha):
        low, high = float(alpha.min()), float(alpha.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"alpha has values from {low:g} to {high:g}; need numbers in [0, 1]: how far each pair is believed.")


def check_groups(groups: Tensor, pairs: int, device: torch.device) -> None:
    """An integer for each pair."""
    if not isinstance(groups, Tensor):
        raise TypeError(
            f"groups is a {type(groups).__name__}; need a torch.Tensor of integers, one id a pair: torch.tensor(ids)."
        )
    if is_sharded(groups):
        raise TypeError("groups is a DTensor; need a plain tensor of this rank's pairs, as groups.to_local() of sharded rows is.")
    if groups.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(
            f"groups has dtype {groups.dtype}; need integers, one id a pair. Number the names: "
            "numpy.unique(names, return_inverse=True)[1]."
        )
    if tuple(groups.shape) != (pairs,):
        raise ValueError(f"groups has shape {tuple(groups.shape)}; need ({pairs},), one id a pair.")
    if groups.device != device:
        raise ValueError(f"groups is on {groups.device} and image_features on {device}; need one device.")


def check_scores(scores: Tensor, epsilon: float) -> None:
    """(..., M, N), finite or -inf, and over epsilon far within the computing type."""
    check_floating("scores", scores)
    if scores.dim() < 2:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)}; need (..., M, N), a row for each item, a column for each match."
        )
    if may_read(scores) and scores.numel():
        values = scores.detach()
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not high < math.inf:
            raise ValueError(f"scores holds {high}; need finite numbers, or -inf for a pair that is forbidden.")
        if low == -math.inf:
            low = float(values.masked_fill(values == -math.inf, 0).amin())
        dtype = torch.promote_types(scores.dtype, torch.float32)
        largest, limit = max(-low, high) / epsilon, largest_logit(dtype)
        if not largest <= limit:
            raise ValueError(f"scores / epsilon reaches {largest:g}; need at most {limit:g} for {dtype}. Raise epsilon.")


def check_no_tangent(name: str, tensor: Tensor) -> None:
    if has_tangent(tensor):
        raise RuntimeError(
            f"{name} has a tangent of forward-mode differentiation, which implicit=True has no rule for; need reverse mode: "
            "backward(), torch.func.grad or jacrev. Or leave implicit out."
        )


def check_vector(name: str, vector: Tensor, scores: Tensor, size: int) -> None:
    """Shape (size,), or with the batch dimensions of the scores, on their device."""
    check_floating(name, vector)
    shape = (*scores.shape[:-2], size)
    if tuple(vector.shape) not in ((size,), shape):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; need ({size},) or {shape} for scores {tuple(scores.shape)}.")
    if vector.device != scores.device:
        raise ValueError(f"{name} is on {vector.device} and scores on {scores.device}; need one device.")


def check_start(potential: Tensor) -> None:
    """No NaN or +inf, and somewhere to start in each problem."""
    if may_read(potential) and potential.numel():
        high = potential.detach().amax(-1)
        if not bool((high < math.inf).all()):
            raise ValueError(
                f"column_potential holds {float(high.amax())}; need finite numbers, or -inf for a column of no mass."
            )
        if not bool((high > -math.inf).all()):
            raise ValueError("column_potential is -inf in every column; need a finite number in a column that has mass.")


def check_non_negative(name: str, marginal: Tensor) -> None:
    if may_read(marginal) and marginal.numel():
        low, high = float(marginal.detach().amin()), float(marginal.detach().amax())
        if not (low >= 0 and high < math.inf):
            raise ValueError(f"{name} has values from {low:g} to {high:g}; need finite masses of at least 0.")


def check_masses(rows: Tensor, columns: Tensor, given: list[torch.dtype]) -> None:
    """Equal positive total mass in both marginals, for each problem of a batch, but for the rounding of the dtypes given."""
    if may_read(rows) and may_read(columns) and rows.numel() and columns.numel():
        row_mass, column_mass = rows.detach().sum(-1), columns.detach().sum(-1)
        if bool((row_mass == 0).any()):
            raise ValueError("row_marginal sums to 0; need some mass to transport.")
        difference = ((row_mass - column_mass).abs() / row_mass).flatten()
        worst = int(difference.argmax())
        if float(difference[worst]) > max([1e-3, *(2 * torch.finfo(dtype).eps for dtype in given)]):
            raise ValueError(
                f"row_marginal sums to {float(row_mass.flatten()[worst]):g} and column_marginal to "
                f"{float(column_mass.flatten()[worst]):g}; need equal masses. Scale one: b * (a.sum() / b.sum())."
            )


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction is {reduction!r}; need 'mean', the loss of the batch, or 'none', one loss a pair.")


def refuse_names(unknown: Iterable[str], known: Sequence[str], owner: str) -> None:
    """An error for the first of keyword arguments that nothing takes."""
    for name in unknown:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise TypeError(f"{name} is no argument of {owner}; need one of {', '.join(known)}.{hint}")
