"""Matrix products with float32 sums by the vendor's library, and the dtype of what is multiplied."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from otter_losses.ops.tracing import constant_when_traced

HALVES = (torch.float16, torch.bfloat16)


def operand_dtype(features: Tensor) -> torch.dtype:
    """What products take features in: their own dtype, or that of a half-precision autocast region that float32 ones come in."""
    device = features.device.type
    if features.dtype != torch.float32 or device == "meta" or not torch.is_autocast_enabled(device):
        return features.dtype
    dtype = torch.get_autocast_dtype(device)
    return dtype if dtype in HALVES else features.dtype


def as_multiplied(features: Tensor) -> Tensor:
    """Half-precision features as they are where products of them have float32 sums, else in float32; float64 as it is."""
    multiplies, _ = _sums_in_float32(features.device, features.dtype)
    return features if multiplies else features.to(torch.promote_types(features.dtype, torch.float32))


def parts(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two of a half precision whose sum they are, to 2^-17 of bfloat16 and 2^-22 of float16."""
    high = values.to(dtype)
    return high, torch.sub(values, high, out=torch.empty_like(high))


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether this torch multiplies, and multiplies and adds, operands of that type into float32 there."""
    if device.type != "cuda" or dtype not in HALVES:
        return False, False
    with unset_fake_temporarily():
        return _tried(device, dtype)


def _tried(device: torch.device, dtype: torch.dtype) -> tuple[bool, bool]:
    operand, out = torch.zeros(16, 16, dtype=dtype, device=device), torch.zeros(16, 16, device=device)

    def works(run: Callable[[], Tensor]) -> bool:
        try:
            run()
        except (RuntimeError, TypeError) as error:
            # An error of memory or of the library is no answer.
            if isinstance(error, torch.OutOfMemoryError) or ("CUBLAS" in str(error) and "NOT_SUPPORTED" not in str(error)):
                raise
            return False
        return True

    return (
        works(lambda: torch.mm(operand, operand, out_dtype=torch.float32, out=out)),
        works(lambda: torch.addmm(out, operand, operand, out_dtype=torch.float32, out=out)),
    )


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a b`` in float32."""
    if a.dtype not in HALVES:
        return torch.mm(a, b, out=out)
    if _sums_in_float32(a.device, a.dtype)[0]:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``total + a b`` in float32; `first` overwrites."""
    if a.dtype in HALVES:
        multiplies, adds = _sums_in_float32(a.device, a.dtype)
        if adds:
            torch.addmm(total, a, b, beta=0 if first else 1, out_dtype=torch.float32, out=total)
            return
        if multiplies:
            summand = torch.mm(a, b, out_dtype=torch.float32)
            total.copy_(summand) if first else total.add_(summand)
            return
        a, b = a.float(), b.float()
    torch.addmm(total, a, b, beta=0 if first else 1, out=total)


@constant_when_traced
def computes_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels multiply such features themselves, tile by tile, on half-precision units.

    Writing a product to memory and reading it back costs more than the product there.
    Float32 features are multiplied in parts, which wants float32 results of the vendor's half-precision products too.
    """
    return device.type != "cuda" or _computes_tiles(device, dtype)


@cache
def _computes_tiles(device: torch.device, dtype: torch.dtype) -> bool:
    return _has_matrix_units(device) and (dtype in HALVES or all(_sums_in_float32(device, torch.float16)))


def _has_matrix_units(device: torch.device) -> bool:
    """Of half precision, for Triton: from Ampere on; of AMD's, MI200, MI300 and MI350."""
    if torch.version.cuda is None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).startswith(("gfx90a", "gfx94", "gfx95"))
    return torch.cuda.get_device_capability(device) >= (8, 0)
