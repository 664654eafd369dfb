"""What the floors count, held against counts by hand."""

from pathlib import Path

import pytest

from benchmarks.roofline import floors
from benchmarks.roofline.chips import H100, Chip
from benchmarks.roofline.work import LOSSES, Work


def test_floors_at_a_point_counted_by_hand() -> None:
    """N = 1,000, D = 100, half precision, products stored: one is 0.2 GFLOP over 0.4 MB of features, its block 4 MB."""
    work = Work(1000, 100, half=True, computes=False)
    steps = work.steps("InfoNCE")
    assert sum(step.operations for step in steps) == 4 * 0.2e9
    assert sum(step.block for step in steps) == 16e6
    assert sum(step.bytes for step in steps) == 4 * 0.4e6 + 2e6 + 2 * 2e6
    slow_memory = Chip("", bandwidth=1e9, half=1e15, single=1e15, computes_tiles=False)
    assert work.milliseconds("InfoNCE", slow_memory, cached=True) == pytest.approx(7.6)
    assert work.milliseconds("InfoNCE", slow_memory, cached=False) == pytest.approx(23.6)
    slow_products = Chip("", bandwidth=1e15, half=1e9, single=1e9, computes_tiles=False)
    assert work.milliseconds("InfoNCE", slow_products, cached=True) == pytest.approx(800, rel=1e-3)
    otter = work.steps("OTTER")
    assert sum(step.operations for step in otter) == 6 * 0.2e9
    assert sum(step.bytes for step in otter) == 6 * 0.4e6 + (2 + 5 * 4 + 2 + 4 + 4) * 1e6


def test_products_that_kernels_compute_are_not_written() -> None:
    stored, computed = Work(1000, 100, half=True, computes=False), Work(1000, 100, half=True)
    for loss in ("InfoNCE", "OTTER", "SigLIP"):
        assert sum(step.operations for step in computed.steps(loss)) == sum(step.operations for step in stored.steps(loss))
        assert sum(step.bytes for step in computed.steps(loss)) == sum(step.bytes for step in stored.steps(loss))
        assert sum(step.block for step in computed.steps(loss)) == 0
    # One step of a product and of what reads it takes the longer of their times, not both.
    even = Chip("", bandwidth=1e9, half=0.2e9 / 2.4e-3, single=1e9)
    assert computed.milliseconds("InfoNCE", even, cached=False) == pytest.approx(2.4 + 3 * 2.4, rel=1e-3)


def test_a_kernel_beyond_max_memory_is_computed_eight_times() -> None:
    kept, again = Work(1000, 100, True), Work(1000, 100, True, max_memory=0)
    assert kept.stores_kernel()
    assert not again.stores_kernel()
    more = sum(step.operations for step in again.otter()) - sum(step.operations for step in kept.otter())
    assert more == 7 * 2 * 0.2e9


def test_floors_of_float32_before_ampere_grow_with_what_is_kept() -> None:
    work = Work(1000, 100, half=False, computes=False)
    steps = work.steps("OTTER")
    assert sum(step.block for step in steps) == 0
    assert sum(step.bytes for step in steps) == 6 * 2 * 0.4e6 - 2 * 0.4e6 + (4 + 8 + 40 + 4 + 8 + 12 + 8) * 1e6
    assert sum(step.single for step in steps) == 5 * 0.2e9
    assert sum(step.operations for step in steps) == 0


def test_float32_is_three_products_of_half_precision_and_writes_none_of_them() -> None:
    for loss, products, walked in (("InfoNCE", 4, 4 + 2 * 4), ("SigLIP", 3, 4 + 2 * 4), ("OTTER", 6, 4 + 40 + 4 + 8 + 2 * 4)):
        steps = Work(1000, 100, half=False).steps(loss)
        assert sum(step.operations for step in steps) == 3 * products * 0.2e9
        assert sum(step.single for step in steps) == 0
        assert sum(step.bytes for step in steps) == products * 0.8e6 + walked * 1e6
        assert sum(step.block for step in steps) == 0
    eager = Work(1000, 100, half=False).steps("eager ClipLoss")
    assert sum(step.single for step in eager) == 6 * 0.2e9
    assert sum(step.operations for step in eager) == 0


def test_what_a_kernel_does_beside_its_product_takes_time_too() -> None:
    """N = 1,000, D = 100 on a chip of 1 ps an entry and infinite rates: two walks over the logits, and two over K beside them."""
    chip = Chip("", bandwidth=1e30, half=1e30, single=1e30, epilogue=1e-12)
    work = Work(1000, 100, half=True)
    found = {loss: work.milliseconds(loss, chip, cached=True) for loss in LOSSES}
    assert found == pytest.approx({"InfoNCE": 2e-3, "OTTER": 5e-3, "SigLIP": 1e-3, "eager ClipLoss": 0})


@pytest.mark.parametrize(("wide", "rate"), [(1, 433e12), (2, 540e12)])
def test_the_measured_chip_has_the_rates_of_the_fused_prototypes(wide: int, rate: float) -> None:
    (step,) = Work(32768, 512, half=True).read("product", "reduction", wide=wide)
    assert step.operations / step.seconds(H100, cached=True) == pytest.approx(rate, rel=0.03)


def test_the_floors_table_has_a_row_for_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = floors.rows([512, 262144], 512)
    assert len(found) == 2 * 2 * len(LOSSES)
    lines = floors.table(found).splitlines()
    assert len(lines) == 2 + len(found)
    assert len({line.count("|") for line in lines}) == 1
    assert any("OTTER, K recomputed" in line for line in lines)
