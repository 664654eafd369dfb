"""CUDA C++ to machine code by NVRTC, through NVIDIA's cuda-core, which is optional; what was built is kept on disk."""

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from otter_losses.ops import cache as disk

INSTALL = 'pip install "otter_losses[cuda]" (for a PyTorch with CUDA 12: "otter_losses[cuda12]")'


def missing() -> str | None:
    """What is not installed for `compile`, and how to install it; None where all is there."""
    return _missing()[0]


@cache
def _missing() -> tuple[str | None, tuple[int, int], tuple[int, ...]]:
    """Also NVRTC's version, and the architectures it builds for."""
    absent = ((0, 0), ())
    try:
        installed = find_spec("cuda.core") is not None and find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        return f"the CUDA kernels need the package cuda-core, which is not installed. Install it: {INSTALL}.", *absent
    try:
        from cuda import core
        from cuda.bindings import nvrtc

        if not hasattr(core, "Program"):
            return f"the CUDA kernels need cuda-core 1.0 or newer, not {core.__version__}. Install it: {INSTALL}.", *absent
        status, major, minor = nvrtc.nvrtcVersion()
        if int(status) != 0:
            raise RuntimeError(f"NVRTC's version cannot be read: error {int(status)}")
        status, *architectures = nvrtc.nvrtcGetSupportedArchs()
        if int(status) != 0:
            raise RuntimeError(f"NVRTC's architectures cannot be read: error {int(status)}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the CUDA kernels need NVRTC, NVIDIA's compiler, which does not load ({reason}). Install it: {INSTALL}.", *absent
    return None, (major, minor), tuple(int(each) for each in architectures[0])


def version() -> tuple[int, int]:
    """NVRTC's, where nothing is missing."""
    return _missing()[1]


def architectures() -> tuple[int, ...]:
    """What NVRTC builds for, as in 90 for sm_90, where nothing is missing."""
    return _missing()[2]


def compile(source: Path, architecture: int, defines: Iterable[tuple[str, str]] = ()) -> bytes:
    """The cubin, from the cache or built."""
    reason = missing()
    if reason is not None:
        raise RuntimeError(reason)
    text, macros = source.read_text(encoding="utf-8"), sorted(defines)
    key = hashlib.sha256(repr((text, architecture, macros, version())).encode()).hexdigest()
    entry = f"{source.stem}-sm_{architecture}-{key[:32]}.cubin"
    cubin = disk.load(entry)
    if cubin is None:
        cubin = _build(source.name, text, architecture, macros)
        disk.store(entry, cubin)
    return cubin


def _build(name: str, text: str, architecture: int, macros: list[tuple[str, str]]) -> bytes:
    from cuda import core

    options = core.ProgramOptions(name=name, arch=f"sm_{architecture}", std="c++17", define_macro=macros or None)
    try:
        return bytes(core.Program(text, "c++", options).compile("cubin").code)
    except Exception as error:
        built_by = ".".join(str(number) for number in version())
        raise RuntimeError(
            f"NVRTC {built_by} cannot build {name} for sm_{architecture}; it builds for {list(architectures())}. "
            f"Another one may be installed: {INSTALL}. It says: {error}"
        ) from error
