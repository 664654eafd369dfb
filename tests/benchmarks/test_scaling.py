"""The scaling model: what it counts, how it adds up, and that the page shows what the script wrote."""

import json

import pytest

from benchmarks.measure import RESULTS
from benchmarks.roofline.chips import H200
from benchmarks.roofline.scaling import derived, measured, network
from benchmarks.roofline.scaling.network import Collective
from benchmarks.roofline.scaling.report import report as written
from benchmarks.roofline.work import Work
from tests.helpers.paths import ROOT

NDR, ETHERNET = network.NETWORKS


def test_collectives_are_those_of_the_page() -> None:
    """The numbers of docs/distributed.md, which tests/distributed/test_sharding.py counts in the running loss."""
    crossing = derived.collectives("global", 32768, itemsize=4)
    assert sum(each.bytes for each in crossing if each.name == "features") == pytest.approx(201e6, rel=2e-3)
    assert sum(each.bytes for each in crossing if each.name == "column sums") == pytest.approx(1.44e6, rel=1e-2)
    assert (crossing[-2].kind, crossing[-2].bytes) == ("gather", 4 * 4 * 32768)
    assert crossing[-1].kind == "scatter"
    assert crossing[-1].bytes == pytest.approx(67e6, rel=2e-3)
    sums = [each.bytes / 4 for each in derived.collectives("global", 72, 6, itemsize=4) if each.kind == "sum"]
    assert sums == [72, *[144] * 5, 72, 72, 72, 1, 1]


def test_the_released_scheme_gathers_two_problems() -> None:
    problems = [each for each in derived.collectives("released", 32768) if each.name == "a problem"]
    assert sum(each.bytes for each in problems) == pytest.approx(8.6e9, rel=2e-3)


def test_local_transport_sends_what_info_nce_does() -> None:
    local, plain = (
        sum(each.sent(64) for each in derived.collectives(scheme, 65536) if each.bytes > 4) for scheme in ("local", "InfoNCE")
    )
    assert local == plain


def test_large_collectives_go_at_the_ring_formula() -> None:
    gigabyte = Collective("", "sum", 1e9)
    inside = gigabyte.seconds(8, 450e9, NDR)
    assert inside == pytest.approx(2 * 1e9 * 7 / 8 / (0.8 * 450e9), rel=0.02)
    assert gigabyte.seconds(16, 450e9, NDR) == pytest.approx(2 * 1e9 * 15 / 16 / (0.8 * 400e9), rel=0.05)
    assert gigabyte.seconds(16, 450e9, ETHERNET) == pytest.approx(2 * 1e9 * 15 / 16 / (0.8 * 12.5e9), rel=0.01)
    assert gigabyte.seconds(1, 450e9, NDR) == 0


def test_small_sums_take_the_tree_whose_latency_grows_slowest() -> None:
    small = Collective("", "sum", 4.0)
    tree = 4.4 + 2 * (7 * 0.52 * 1.8 + 6 * 5.0)
    assert small.seconds(512, 450e9, NDR) == pytest.approx(1e-6 * tree, rel=1e-3)


def test_a_rank_alone_computes_the_floor_and_ranks_divide_it() -> None:
    floor = Work(4096, 512, True).milliseconds("OTTER", H200, cached=False) / 1e3
    assert derived.kernel_seconds("global", H200, 4096, 4096) == floor
    assert derived.kernel_seconds("local", H200, 4096, 4096) == floor
    shares = [derived.kernel_seconds("global", H200, own, 32768) for own in (32768, 16384)]
    assert shares[1] == pytest.approx(shares[0] / 2, rel=0.01)
    assert derived.kernel_seconds("released", H200, 512, 32768) > 116 * 4 * 32768**2 / H200.bandwidth


def test_memory_of_a_rank() -> None:
    assert derived.memory("global", 2048, 1 << 20) == 2 * 2048 * 2**20 + 3 * 2 * 512 * 2**20 + 4 * 512 * 2**20
    recomputed = derived.memory("global", 16384, 1 << 20)
    assert recomputed == (3 * 2 + 4) * 512 * 2**20
    assert derived.memory("local", 2048, 1 << 20) == 2 * 2048**2 + (2 + 4) * 512 * 2**20


def test_a_fit_finds_latency_and_bandwidth() -> None:
    sizes = [4096, 65536, 1 << 20]
    latency, bandwidth = measured.fit(sizes, [1e3 * (3e-4 + size / 2e9) for size in sizes])
    assert latency == pytest.approx(3e-4, rel=1e-6)
    assert bandwidth == pytest.approx(2e9, rel=1e-6)


def test_local_processes_are_measured() -> None:
    found = measured.measure([1, 2], [(1, 32), (2, 32)], [1024, 65536], repetitions=2, alone=32)
    assert [(row["ranks"], row["kind"]) for row in found["fits"]] == [(2, kind) for kind in measured.KINDS]
    assert [row["ranks"] for row in found["steps"]] == [1, 2]
    assert all(row["median_ms"] > 0 and row["model_ms"] > 0 for row in found["steps"])
    assert found["steps"][0]["wire_ms"] == 0 < found["steps"][1]["wire_ms"]


def test_the_results_are_those_of_the_model_as_it_is() -> None:
    results = json.loads((RESULTS / "scaling-cpu.json").read_text(encoding="utf-8"))
    assert results["derived"] == json.loads(json.dumps(derived.derived()))
    report = written(results["machine"], results["measured"], results["derived"])
    assert report == (RESULTS / "scaling-cpu.md").read_text(encoding="utf-8")


def test_the_page_shows_rows_of_the_results() -> None:
    results = (RESULTS / "scaling-cpu.md").read_text(encoding="utf-8").splitlines()
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in page if line.startswith("| ")]
    assert len(rows) > 12
    assert set(rows) <= set(results)
