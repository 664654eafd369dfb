"""What AMD's assembly says of its kernel."""

import re

LANES = {"REG": "vgpr_count", "STACK": "private_segment_fixed_size", "SHARED": "group_segment_fixed_size"}
"""The fields of a kernel's metadata, by the names that cuobjdump has for the same of a cubin."""


def resources(assembly: str) -> dict[str, int]:
    """As `cubin.resources` has them of one kernel: vector registers; scratch memory, LDS and spilled vector registers in bytes.

    Scalar registers spill into lanes of a vector register, which costs no memory: if even that overflows, STACK has it.
    """
    found = {name: _field(assembly, field) for name, field in LANES.items()}
    return {**found, "LOCAL": 4 * _field(assembly, "vgpr_spill_count")}


def _field(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s*(\d+)", assembly)
    if found is None:
        raise ValueError(f"AMD's assembly has no .{name}; need the metadata that Triton's compiler appends to a kernel")
    return int(found[1])
