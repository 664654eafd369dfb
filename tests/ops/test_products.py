"""What products take features in."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from otter_losses.ops.products import operand_dtype


class OnGPU:
    """As much of features as the decision looks at."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


@pytest.fixture
def gpu_region() -> Iterator[None]:
    """Autocast as a GPU's would be; the context manager itself wants the GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", before)


@pytest.mark.parametrize("region", [torch.bfloat16, torch.float16])
def test_a_half_precision_region_is_permission_to_round_float32(region: torch.dtype) -> None:
    with torch.autocast("cpu", region):
        assert operand_dtype(torch.ones(2, 2)) == region
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            assert operand_dtype(torch.ones(2, 2, dtype=dtype)) == dtype
        with torch.autocast("cpu", enabled=False):
            assert operand_dtype(torch.ones(2, 2)) == torch.float32
        assert operand_dtype(torch.ones(2, 2, device="meta")) == torch.float32
    assert operand_dtype(torch.ones(2, 2)) == torch.float32


@pytest.mark.parametrize(("region", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)])
def test_the_region_is_that_of_the_features_device(gpu_region: None, region: torch.dtype, expected: torch.dtype) -> None:
    torch.set_autocast_dtype("cuda", region)
    features: Tensor = OnGPU()  # type: ignore[assignment]
    assert operand_dtype(features) == expected
    assert operand_dtype(torch.ones(2, 2)) == torch.float32
