"""Fused passes over a row block for GPUs, written in Triton, which is optional: `kernels` and `passes` are imported on demand."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor


def check_usable(x: Tensor) -> None:
    """An error that says what is missing for the kernels to run on x, a tensor of the computing dtype."""
    if find_spec("triton") is None:
        raise RuntimeError("backend='triton' needs the package triton, which is not installed. Install it: pip install triton.")
    if x.dtype != torch.float32:
        raise RuntimeError(
            f"backend='triton' computes in float32, but the features are {x.dtype}. Use float32, or backend='torch'."
        )
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"backend='triton' needs features on a CUDA device, but they are on {x.device}. Use backend='auto' or 'torch'; "
            "TRITON_INTERPRET=1 in the environment runs the kernels in Triton's interpreter, slowly."
        )
