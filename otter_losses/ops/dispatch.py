"""Whether the fused kernels compute or plain torch: what was asked for, or for "auto" what is there and pays."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

FEWEST_PAIRS = 64
"""For "auto" to use the kernels. Derived, not measured: with fewer a step of either backend is launches and nothing else."""

STAYS_IN_CACHE = 2048
"""Pairs up to which a float32 transport kernel (16 MiB) stays in a GPU's cache, where 16-bit codes save no time. Derived."""

BY_DEVICE = -1
"""For `max_memory`: what `room` says."""

LEAST_CAPABILITY = (7, 0)

SURPRISE = "Triton could not compile or run a kernel"
"""How a reason begins that nobody expects where all that is needed is there."""

_trouble: dict[torch.device, str | None] = {}


def fuses(backend: str, x: Tensor, pairs: int) -> bool:
    """Whether Triton's kernels compute for features x, of so many pairs in the whole batch.

    Looks at no data, and gives the same answer all process long, once it could try. What was asked for by name has passed
    `check_usable`.
    """
    if backend != "auto":
        return backend != "torch"
    if x.device.type != "cuda" or x.dtype == torch.float64 or pairs < FEWEST_PAIRS:
        return False
    known = x.device in _trouble
    found = trouble(x.device)
    if found is not None and not known and found.startswith(SURPRISE):
        warnings.warn(f"otter_losses computes in plain torch on {x.device}: {found}", RuntimeWarning, stacklevel=2)
    return found is None


def room(max_memory: int, device: torch.device) -> int:
    """Bytes that N x N matrices may take: those asked for, or by the device 2 GiB or an eighth of a GPU's memory.

    Where they fill an eighth, the eager loss's matrices would fill more than all of it.
    """
    if max_memory != BY_DEVICE:
        return max_memory
    return max(2 << 30, _memory_of(device) // 8 if device.type == "cuda" and torch.cuda.is_available() else 0)


@cache
def _memory_of(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def check_usable(backend: str, x: Tensor) -> None:
    """An error that says what is missing for the backend asked for to run on x."""
    if backend not in ("triton", "cuda"):
        return
    if find_spec("triton") is None:
        raise RuntimeError(
            f"backend={backend!r} needs the package triton, which is not installed. Install it: pip install triton."
        )
    if x.dtype == torch.float64:
        raise RuntimeError(f"backend={backend!r} computes in float32, but the features are {x.dtype}. Use backend='torch'.")
    if x.device.type == "cuda":
        if not torch.compiler.is_compiling() and (found := trouble(x.device)) is not None:
            raise RuntimeError(f"backend={backend!r} does not run on {x.device}: {found} Use backend='torch'.")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend={backend!r} needs features on a CUDA device, but they are on {x.device}. Use backend='auto' or 'torch'; "
            "TRITON_INTERPRET=1 in the environment runs Triton's kernels in its interpreter, slowly."
        )


def trouble(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run there, found out by running one, once."""
    if device not in _trouble:
        if find_spec("triton") is None:
            _trouble[device] = "the package triton is not installed."
        elif not torch.cuda.is_available():
            _trouble[device] = "torch sees no CUDA device."
        elif torch.version.cuda is None:
            _trouble[device] = "torch is built for other GPUs than NVIDIA's."
        elif torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            _trouble[device] = "its compute capability is below 7.0."
        elif torch.cuda.is_current_stream_capturing():
            return None  # a trial would break the capture
        else:
            _trouble[device] = _failure(device)
    return _trouble[device]


def _failure(device: torch.device) -> str | None:
    """What goes wrong when a kernel is compiled and run."""
    try:
        with unset_fake_temporarily(), torch.no_grad():
            from otter_losses.ops.triton.features import narrow

            values = torch.tensor([[3.0, -0.5], [0.25, 1.0]], device=device)
            found, octave = narrow(values)
            if not torch.equal(found.float() * octave, values):
                return f"{SURPRISE} (it gave wrong numbers)."
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return f"{SURPRISE} ({cause}). Triton needs a C compiler and a cache folder that it may write to (TRITON_CACHE_DIR)."
    return None


@contextmanager
def advice_on_memory(max_memory: int, device: torch.device) -> Iterator[None]:
    """What to do about an allocation that fails."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        kept = f"{room(max_memory, device) / 2**30:.3g} GiB"
        raise torch.OutOfMemoryError(
            f"{error}\notter_losses may keep {kept} of N x N matrices from forward to backward: with a smaller max_memory "
            "(0: none) it recomputes them in row blocks."
        ) from error
