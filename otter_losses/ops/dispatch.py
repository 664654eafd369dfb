"""Whether kernels compute or eager torch: what was asked for, or for "auto" what is there and pays. Decided once a call."""

import os
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops.domains import has_numbers
from otter_losses.ops.tracing import constant_when_traced

FEWEST_PAIRS = 64
"""For "auto" to use the kernels. Derived, not measured: with fewer a step of either backend is launches and nothing else."""

LEAST_CAPABILITY = (7, 0)

LARGEST_RANGE = 1024.0
"""Of a teacher's logits, for kernels: one float, in which they hold a logarithm, rounds the targets by 1e-4 there."""

UNEXPECTED = "Triton could not compile or run a kernel"
"""How a reason begins that nobody expects where all that is needed is there."""

_reasons: dict[torch.device, str | None] = {}


def resolve(backend: str, features: Tensor, pairs: int, name: str = "features") -> str:
    """The backend that computes for local features of a batch of so many pairs: "torch", or else kernels do.

    What the features are called in errors is `name`.

    Then "triton" and "cuda" insist on how they solve the transport, and "auto" takes what there is. Looks at no data, and gives
    the same answer all process long, once it could try.

    Raises:
        RuntimeError: what was asked for by name cannot run there; it says what is missing.
    """
    if backend == "torch":
        return backend
    if backend == "auto":
        if features.device.type != "cuda" or features.dtype == torch.float64 or pairs < FEWEST_PAIRS:
            return "torch"
        return backend if _is_nvidia() and _kernels_run(features.device) else "torch"
    problem = _problem(backend, features.device, features.dtype, name)
    if problem is not None:
        raise RuntimeError(problem)
    return backend


def _is_nvidia() -> bool:
    """Whether torch's "cuda" devices are NVIDIA's. Kernels may run on others', but nobody has measured whether that pays."""
    return torch.version.cuda is not None


UNTRACED = (
    "takes no part in tracing (torch.compile), in transforms of torch.func or in forward-mode differentiation. "
    "Use backend='auto', which takes plain torch there, or 'torch'."
)


def untraced(backend: str, features: Tensor) -> str:
    """The backend to resolve for what kernels do outside of any operator: plain torch where somebody traces.

    Raises:
        RuntimeError: kernels were asked for by name.
    """
    if has_numbers(features):
        return backend
    if backend not in ("auto", "torch"):
        raise RuntimeError(f"backend={backend!r} {UNTRACED}")
    return "torch"


def is_fused(resolved: str) -> bool:
    """Whether kernels compute for what `resolve` returned."""
    return resolved != "torch"


@constant_when_traced
def _kernels_run(device: torch.device) -> bool:
    known = device in _reasons
    reason = unavailable_reason(device)
    if reason is not None and not known and reason.startswith(UNEXPECTED):
        warnings.warn(f"otter_losses computes in plain torch on {device}: {reason}", RuntimeWarning, stacklevel=2)
    return reason is None


@constant_when_traced
def _problem(backend: str, device: torch.device, dtype: torch.dtype, name: str) -> str | None:
    """Why a backend asked for by name cannot run on such features."""
    if find_spec("triton") is None:
        return f"backend={backend!r} needs the package triton, which is not installed. Install it: pip install triton."
    if dtype == torch.float64:
        return f"backend={backend!r} computes in float32, but the {name} are {dtype}. Use backend='torch'."
    if device.type == "cuda":
        reason = unavailable_reason(device)
        return None if reason is None else f"backend={backend!r} does not run on {device}: {reason} Use backend='torch'."
    if os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"backend={backend!r} needs {name} on a CUDA device, but they are on {device}. Use backend='auto' or 'torch'; "
            "TRITON_INTERPRET=1 in the environment runs Triton's kernels in its interpreter, slowly."
        )
    return None


def unavailable_reason(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a CUDA device, found out by running one, once; None where they can."""
    if device not in _reasons:
        if find_spec("triton") is None:
            _reasons[device] = "the package triton is not installed."
        elif not torch.cuda.is_available():
            _reasons[device] = "torch sees no CUDA device."
        elif _is_nvidia() and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            _reasons[device] = "its compute capability is below 7.0."
        elif torch.cuda.is_current_stream_capturing():
            return None  # a trial would break the capture
        else:
            _reasons[device] = _failed_trial(device)
    return _reasons[device]


def _failed_trial(device: torch.device) -> str | None:
    """What goes wrong when a kernel is compiled and run."""
    try:
        with unset_fake_temporarily(), torch.no_grad():
            from otter_losses.ops.triton import features

            values = torch.tensor([[3.0, -0.5], [0.25, 1.0]], device=device)
            halves = features.split(values, values, torch.ones((), device=device), 1, WHOLE_BATCH)
            if not torch.equal(halves.y.float() * halves.powers[1], values):
                return f"{UNEXPECTED} (it gave wrong numbers)."
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return f"{UNEXPECTED} ({cause}). Triton needs a C compiler and a cache folder that it may write to (TRITON_CACHE_DIR)."
    return None
