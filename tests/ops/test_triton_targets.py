"""otter_targets by kernels: on a GPU where there is one, else in Triton's interpreter."""

from typing import Any

import pytest
import torch

from otter_losses.functional import otter_targets
from tests.helpers.batches import DEVICE, FAMILIES, make_features
from tests.helpers.checks import relative

pytest.importorskip("triton", reason="triton is there on Linux only")
# The interpreter computes lanes beyond the matrix's edge too, and numpy tells of it.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.03}, {"epsilon": 0.1, "gamma_image": 0.0, "iterations": 2}])
def test_targets_equal_float64(family: str, n: int, options: dict[str, Any]) -> None:
    """In logarithms of one float, their rounding: 6e-8 of a logarithm as large as the span."""
    v, t = (each.float().to(DEVICE) for each in make_features(family, n, 12, seed=4))
    exact = otter_targets(v.double(), t.double(), **options)
    for plan, expected in zip(otter_targets(v, t, backend="triton", **options), exact, strict=True):
        assert plan.dtype == torch.float32
        assert plan.shape == (n, n)
        torch.testing.assert_close(plan.sum(1), torch.ones(n, device=DEVICE), rtol=4e-5 if "epsilon" in options else 2e-6, atol=0)
        assert n == 1 or not plan.diagonal().any()
        assert relative(plan, expected) <= (4e-5 if "epsilon" in options else 4e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_read_as_they_are(dtype: torch.dtype) -> None:
    v, t = (each.to(DEVICE, dtype) for each in make_features("random", 41, 24))
    for plan, expected in zip(otter_targets(v, t, backend="triton"), otter_targets(v.double(), t.double()), strict=True):
        assert plan.dtype == torch.float32
        assert relative(plan, expected) <= 3e-4


def test_what_kernels_do_not_take_is_refused() -> None:
    v, t = (each.to(DEVICE) for each in make_features("random", 5, 8))
    with pytest.raises(RuntimeError, match=r"computes in float32, but the features are torch\.float64"):
        otter_targets(v, t, backend="triton")
    with pytest.raises(RuntimeError, match=r"span at most 1024; this epsilon makes them span up to 6e\+03"):
        otter_targets(v.float(), t.float(), epsilon=1e-3, backend="triton")
    with pytest.raises(RuntimeError, match=r"backend='triton' takes no part in tracing .*'auto', which takes plain torch there"):
        otter_targets(torch.empty(5, 8, device="meta"), torch.empty(5, 8, device="meta"), backend="triton")
    with pytest.raises(ValueError, match="backend is 'numpy'; need one of"):
        otter_targets(v, t, backend="numpy")
