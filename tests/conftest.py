"""Settings all tests share."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from otter_losses import set_debug

settings.register_profile(
    "otter",
    deadline=None,
    derandomize=True,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("otter")
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def debug_off() -> Iterator[None]:
    """Every test starts and ends with the library's debug mode off."""
    set_debug(False)
    yield
    set_debug(False)
