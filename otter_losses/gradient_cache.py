"""Batches whose activations do not fit: the gradient of the whole batch with one chunk's activations at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.losses.batch import Parts

REPEATED = 0.05
"""Relative difference of features up to which two passes count as one: kernels may round differently with and without a graph."""


def grad_cache(
    encode: Callable[..., Any],
    chunks: Iterable[Sequence[Any]],
    loss: Callable[..., Tensor | Parts],
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    **call: Any,
) -> Tensor | Parts:
    r"""Run forward and backward of one large batch in chunks (GradCache: Gao et al. 2021, arXiv 2101.06983).

    A loss L over the features f(chunk) of all chunks has the gradient

    .. math:: \frac{\partial L}{\partial \theta} = \sum_k \Big(\frac{\partial f_k}{\partial \theta}\Big)^{\!\top} g_k,
        \qquad g_k = \frac{\partial L}{\partial f_k}

    First, the chunks are encoded without a graph. Then the loss is computed once from the features of all of them (and of all
    ranks). Last, each chunk is encoded again, with the same random numbers on the CPU and on CUDA, to take its :math:`g_k` back
    to the parameters. The gradients are added to those of the parameters, as by ``backward()``, which must not be called again.
    The price is one more forward pass of the encoders.

    Args:
        encode: the model, or any function of a chunk. It returns what `loss` takes: a tuple, such as
            ``(image_features, text_features, logit_scale)``, or a dict of keywords. Features (rows, ...) have at least two
            dimensions and are concatenated. Anything else, including the scale and bias, is the same in every chunk. A second
            call has to return the same again. So `encode` must be a function of the chunk, the parameters and torch's random
            numbers.
        chunks: the arguments of `encode`, one tuple per chunk. Chunks may have any sizes; every rank needs the same number.
        loss: any loss of this package, or another function of the features of the whole batch. If it returns a dict, the parts
            are summed.
        backward: what to do with the loss, if it is more than ``loss.backward()``. For mixed precision this is
            ``lambda loss: scaler.scale(loss).backward()``, for accelerate ``accelerator.backward``, and for one loss per pair
            ``lambda losses: losses.mean().backward()``.
        no_sync: makes the context of every chunk but the last, in which gradients are not yet averaged over the ranks. The
            default is that of `encode`, if it has one, as DistributedDataParallel does. Without one, gradients are averaged
            chunk by chunk; the sum is the same.
        call: further arguments of `loss` for the whole batch: ``dist_image_features``, ``alpha``, ``output_dict``.

    Returns:
        The value that `loss` returned for the whole batch, or its parts, detached.

    Raises:
        ValueError: there are no chunks; outputs have wrong shapes; there are several losses, with the default `backward`; on
            the CPU, or in debug mode, a second pass gives other features.
        TypeError: a chunk, or an output of `encode` or of `loss`, has another type.
        RuntimeError: gradients are off, or `backward` left no gradient.

    Example:
        >>> import torch
        >>> from otter_losses import OTTERLoss, grad_cache
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.image, self.text = torch.nn.Linear(5, 6), torch.nn.Linear(7, 6)
        ...         self.logit_scale = torch.nn.Parameter(torch.tensor(2.7))
        ...     def forward(self, images, texts):
        ...         x, y = self.image(images), self.text(texts)
        ...         x, y = (torch.nn.functional.normalize(each, dim=-1) for each in (x, y))
        ...         return x, y, self.logit_scale.exp()
        >>> model, images, texts = Model(), torch.randn(12, 5), torch.randn(12, 7)
        >>> chunks = list(zip(images.split(4), texts.split(4)))
        >>> value = grad_cache(model, chunks, OTTERLoss())
        >>> value.requires_grad, model.image.weight.grad.shape
        (False, torch.Size([6, 5]))
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "grad_cache is called where gradients are off, and it computes them. Leave torch.no_grad(), or for the value alone "
            "call the loss with the chunks' features concatenated."
        )
    todo = _listed(chunks)
    states, cached = [], []
    with torch.no_grad():
        for chunk in todo:
            states.append(_random_state())
            cached.append(_named(encode(*chunk)))
    torch.clear_autocast_cache()  # of weights converted without a graph, which the second pass would take
    whole = {name: _whole(name, [outputs.get(name) for outputs in cached]) for name in cached[0]}
    value = loss(**call, **whole) if isinstance(next(iter(whole)), str) else loss(*whole.values(), **call)
    total = sum(value.values()) if isinstance(value, dict) else value
    if not isinstance(total, Tensor):
        raise TypeError(f"loss returned a {type(value).__name__}; need a tensor, or a dict of tensors.")
    if backward is Tensor.backward and total.numel() != 1:
        raise ValueError(
            f"loss returned shape {tuple(total.shape)}; need one number to call backward() on. Leave reduction='none' out, or "
            "say what is made of the losses: backward=lambda losses: losses.mean().backward()."
        )
    with _without_autocast(total):
        backward(total)
    shares = _shares(whole, cached)

    waiting: Callable[[], AbstractContextManager[Any]] = getattr(encode, "no_sync", nullcontext) if no_sync is None else no_sync
    for index, chunk in enumerate(todo):
        with nullcontext() if index == len(todo) - 1 else waiting(), _repeating(states[index]):
            outputs = _named(encode(*chunk))
            for name in shares[index]:
                _check_repeated(f"output {name!r} of encode for chunk {index}", cached[index][name], outputs.get(name))
            pairs = [(outputs[name], share) for name, share in shares[index].items() if outputs[name].requires_grad]
            if not pairs:
                raise RuntimeError(
                    "encode returned nothing that requires a gradient; need a model that trains, not torch.no_grad()."
                )
            with _without_autocast(total):
                torch.autograd.backward([output for output, _ in pairs], [share for _, share in pairs])
    return {name: part.detach() for name, part in value.items()} if isinstance(value, dict) else value.detach()


def _listed(chunks: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    todo = list(chunks)
    if not todo:
        raise ValueError("chunks is empty; need at least one, for example zip(images.split(64), texts.split(64)).")
    for chunk in todo:
        if not isinstance(chunk, (tuple, list)):
            raise TypeError(
                f"chunks holds a {type(chunk).__name__}; need a tuple of encode's arguments for each chunk: (chunk,)."
            )
    return todo


def _named(outputs: Any) -> dict[Any, Any]:
    """Outputs by keyword or by place."""
    if isinstance(outputs, Mapping) and outputs:
        return dict(outputs)
    if isinstance(outputs, (tuple, list)) and outputs:
        return dict(enumerate(outputs))
    raise TypeError(
        f"encode returned {outputs!r:.40}, a {type(outputs).__name__}; need a tuple in the order of the loss's arguments, or a "
        "dict of them: (image_features, text_features, logit_scale)."
    )


def _whole(name: Any, outputs: list[Any]) -> Any:
    """An output for the whole batch: the rows of all chunks, or what all chunks share; a leaf where it can have a gradient."""
    first = outputs[0]
    if not isinstance(first, Tensor):
        return first
    if first.dim() < 2 and first.numel() != 1:
        raise ValueError(
            f"output {name!r} of encode has shape {tuple(first.shape)}; need (rows, D), or one number for all chunks."
        )
    rowwise = first.dim() > 1
    for index, output in enumerate(outputs):
        shape = tuple(getattr(output, "shape", ()))
        if len(shape) != first.dim() or shape[rowwise:] != tuple(first.shape)[rowwise:]:
            raise ValueError(
                f"output {name!r} of encode has shape {shape} for chunk {index} and {tuple(first.shape)} for chunk 0; need the "
                "same but for the rows."
            )
    whole = torch.cat(outputs) if rowwise else first.detach()
    return whole.requires_grad_() if whole.is_floating_point() else whole


def _shares(whole: dict[Any, Any], cached: list[dict[Any, Any]]) -> list[dict[Any, Tensor]]:
    """The loss's gradient by each chunk's outputs."""
    shares: list[dict[Any, Tensor]] = [{} for _ in cached]
    for name, leaf in whole.items():
        gradient = leaf.grad if isinstance(leaf, Tensor) else None
        if gradient is None:
            continue
        if gradient.dim() > 1:
            parts = torch.split(gradient, [len(outputs[name]) for outputs in cached])
        else:  # once; zeros before that, because DDP wants a gradient of every parameter from every chunk
            parts = (*(torch.zeros_like(gradient) for _ in cached[1:]), gradient)
        for share, part in zip(shares, parts, strict=True):
            share[name] = part
    if not shares[0]:
        raise RuntimeError("backward left no gradient in the features; need a function that calls backward() on its argument.")
    return shares


def _check_repeated(name: str, then: Tensor, now: Any) -> None:
    shape = tuple(now.shape) if isinstance(now, Tensor) else None
    if shape != tuple(then.shape):
        raise ValueError(f"{name} has shape {shape} in the second pass and {tuple(then.shape)} in the first; need the same.")
    if checks.may_read(then):
        before, after = then.detach().double(), now.detach().double()
        difference = float(torch.linalg.vector_norm(after - before)) / max(float(torch.linalg.vector_norm(before)), 1e-30)
        if difference > REPEATED:
            raise ValueError(
                f"{name} is off by {difference:.0%} in the second pass; need the same as in the first. Draw augmentations before "
                "the batch is cut into chunks, and random numbers from torch's global generators."
            )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def _repeating(state: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """The random numbers that followed the state; afterwards those that would follow now."""
    now = _random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)


@contextmanager
def _without_autocast(like: Tensor) -> Iterator[None]:
    """For backward passes, which compute in the types of their forward passes."""
    with torch.autocast("cpu", enabled=False), torch.autocast(like.device.type, enabled=False):
        yield
