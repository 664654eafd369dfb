"""Settings all tests share."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from otter_losses import set_debug

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for in torch's deterministic mode

settings.register_profile(
    "otter",
    deadline=None,
    derandomize=True,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("otter")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # each core has a process of its own


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that more are slower, and for sums that are to be the same in processes that have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def debug_off() -> Iterator[None]:
    """Every test starts and ends with the library's debug mode off."""
    set_debug(False)
    yield
    set_debug(False)
