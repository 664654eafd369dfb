"""Chips, and the rates that their makers print."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Bytes a second, and operations a second of products in half precision and in float32.

    `computes_tiles`: whether kernels multiply features themselves there (`gemm.computes_tiles`). `epilogue`: seconds that a
    kernel takes for an entry of such a product beside multiplying; 0 where it was not measured.
    """

    name: str
    bandwidth: float
    half: float
    single: float
    source: str = "datasheet, dense"
    computes_tiles: bool = True
    epilogue: float = 0.0


H200 = Chip("H200", 4.3e12, 790e12, 67e12, "copy and bf16 product measured, float32 from the datasheet")
H100 = Chip("H100", 3.03e12, 789e12, 51.5e12, "measured: copy and products", epilogue=1.1e-12)
"""The epilogue is that of two prototypes at N = 32,768: with it a product of width 512 and what is done to its entries reach 433
TFLOP/s, one of width 1,024 reaches 540."""
CHIPS = (
    Chip("V100", 0.9e12, 125e12, 15.7e12, "datasheet, SXM2; float16", computes_tiles=False),
    Chip("A100", 2.039e12, 312e12, 19.5e12, "datasheet, SXM 80 GB, dense"),
    H100,
    H200,
    Chip("B200", 8e12, 2250e12, 75e12, "datasheet, HGX, dense"),
)
