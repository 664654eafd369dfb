"""What is recorded of launches, and what is read from compiled kernels."""

from dataclasses import replace

import pytest

from benchmarks.kernels import __main__ as command
from benchmarks.kernels import amdgcn, launches

ASSEMBLY = """
    .agpr_count:     0
    .group_segment_fixed_size: 16384
    .private_segment_fixed_size: 24
    .sgpr_spill_count: 7
    .vgpr_count:     204
    .vgpr_spill_count: 3
"""


def test_resources_are_read_from_amd_s_assembly() -> None:
    assert amdgcn.resources(ASSEMBLY) == {"REG": 204, "STACK": 24, "SHARED": 16384, "LOCAL": 12}


def test_assembly_without_metadata_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no \.vgpr_spill_count; need the metadata"):
        amdgcn.resources(ASSEMBLY.replace("vgpr_spill_count", "sgpr_count"))


def test_listing_without_the_interpreter_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["", "--list"])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        command.main()
    assert "need TRITON_INTERPRET=1 in the environment" in capsys.readouterr().err


FEATURES = (("left", "*bf16"), ("right", "*bf16"), ("gibbs", "*i16"), ("m", "i32"), ("n", "i32"))
LAUNCH = launches.Launch(
    module="otter_losses.ops.triton.kernels.cross_entropy",
    kernel="statistics",
    signature=FEATURES,
    constants=(("COMPUTED", True),),
    aligned=(0, 1, 2, 3, 4),
    tile=(("BK", 64), ("BM", 64), ("BN", 64), ("DESCRIPTORS", 0), ("num_warps", 8)),
    tiles=(
        (("BK", 64), ("BM", 128), ("BN", 32), ("DESCRIPTORS", 1), ("num_warps", 2)),
        (("BK", 64), ("BM", 64), ("BN", 64), ("DESCRIPTORS", 0), ("num_warps", 8)),
    ),
)


def test_a_tile_that_takes_descriptors_is_compiled_with_them_where_there_are_such() -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    from benchmarks.kernels import builds

    described, loaded = LAUNCH.choices()
    types = {"left": "tensordesc<bf16[128, 64]>", "right": "tensordesc<bf16[32, 64]>", "gibbs": "tensordesc<i16[128, 32]>"}
    assert described.types == {**types, "m": "i32", "n": "i32"}
    assert described.aligned == (3, 4)
    assert loaded == LAUNCH
    assert builds.architectures(described) == (90,)  # 64 entries a thread are too many for sm_100
    assert builds.architectures(loaded) == (80, 90, 100, "gfx90a", "gfx942")


def test_one_launch_is_proof_enough_of_what_walks_over_vectors() -> None:
    pytest.importorskip("triton", reason="triton is there on Linux only")
    from benchmarks.kernels import builds

    merge = replace(LAUNCH, kernel="merge_sums", constants=(), signature=FEATURES[3:], aligned=(0, 1))
    assert builds.architectures(merge) == (70, 80, 90, 100, "gfx90a", "gfx942")
    assert builds.architectures(merge, is_representative=False) == (90,)
