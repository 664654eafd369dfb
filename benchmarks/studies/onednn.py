"""float32 matrix products on the CPU by oneDNN, for a process that trains.

PyTorch gives them to MKL, which leaves AVX-512 idle on AMD: on a Zen 5 core the heads' products ran at 110 GFLOP/s by MKL and at
250 by oneDNN, to the same accuracy.
"""

import warnings
from functools import cache

import torch
from torch import Tensor


@cache
def use_onednn() -> torch.library.Library | None:
    """Sends `mm` and `addmm` there for the rest of the process. Nothing, where PyTorch was built without."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, function in {
        "mm": _mm,
        "mm.out": lambda a, b, *, out: out.copy_(_mm(a, b)),
        "addmm": _addmm,
        "addmm_": lambda c, a, b, *, beta=1, alpha=1: c.copy_(_addmm(c, a, b, beta=beta, alpha=alpha)),
        "addmm.out": lambda c, a, b, *, beta=1, alpha=1, out: out.copy_(_addmm(c, a, b, beta=beta, alpha=alpha)),
    }.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # that they are overridden is the purpose
            products.impl(name, function, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
    return products


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == b.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")  # type: ignore[no-any-return]
    return torch.bmm(a[None], b[None])[0]


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b)
    if alpha != 1:
        product.mul_(alpha)
    return product.add_(c, alpha=beta) if beta else product
