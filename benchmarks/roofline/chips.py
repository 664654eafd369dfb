"""Chips, and the rates that their makers print."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Bytes a second, and operations a second of products in half precision and in float32.

    `computes_tiles`: whether kernels multiply half-precision features themselves there (`gemm.computes_tiles`).
    """

    name: str
    bandwidth: float
    half: float
    single: float
    source: str = "datasheet, dense"
    computes_tiles: bool = True


H200 = Chip("H200", 4.3e12, 790e12, 67e12, "copy and bf16 product measured, float32 from the datasheet")
CHIPS = (
    Chip("V100", 0.9e12, 125e12, 15.7e12, "datasheet, SXM2; float16", computes_tiles=False),
    Chip("A100", 2.039e12, 312e12, 19.5e12, "datasheet, SXM 80 GB, dense"),
    Chip("H100", 3.35e12, 989e12, 67e12, "datasheet, SXM, dense"),
    H200,
    Chip("B200", 8e12, 2250e12, 75e12, "datasheet, HGX, dense"),
)
