"""Everything that the losses launch, found by running them in Triton's interpreter."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.kernels.declared import small_blocks, tiles, told
from otter_losses import OTTERLoss
from otter_losses.losses.registry import LOSSES

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int16: "*i16"}


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments and its constants, as a launch specialises them."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | bool], ...]
    aligned: tuple[int, ...]
    warps: int

    @classmethod
    def of(cls, signature: list[Any], constants: list[Any], aligned: list[int], **others: Any) -> "Launch":
        """From JSON."""
        pairs = (tuple((name, value) for name, value in each) for each in (signature, constants))
        return cls(signature=next(pairs), constants=next(pairs), aligned=tuple(aligned), **others)

    def choices(self) -> "list[Launch]":
        """The same with every tile that the kernel may be launched with; in an odd batch the first is proof enough."""
        choices = tiles(self.kernel)
        if not choices or not self.usual:
            return [self]
        others = tuple((name, value) for name, value in self.constants if name not in ("BM", "BN"))
        return [
            replace(self, constants=(*others, ("BM", tile["BM"]), ("BN", tile["BN"])), warps=tile["num_warps"])
            for tile in choices
        ]

    @property
    def usual(self) -> bool:
        """All aligned, as in batches whose size 16 divides."""
        return all(
            position in self.aligned
            for position, (name, kind) in enumerate(self.signature)
            if kind[0] == "*" or name in ("m", "n")
        )

    @property
    def odd(self) -> bool:
        """Whether the rows of its matrices start where 16 bytes do not."""
        names = [name for name, _ in self.signature]
        return "n" in names and "m" in names and names.index("n") not in self.aligned

    @property
    def switches(self) -> str:
        words = [name.lower() for name, value in self.constants if value is True]
        kinds = {0: "plain", 1: "logarithmic", 2: "codes"}
        words += [kinds[value] for name, value in self.constants if name == "KIND"]
        words += ["odd"] if self.odd else []
        types = sorted({kind for name, kind in self.signature if name in ("k", "g", "out", "values") and kind != "*fp32"})
        return " ".join([*words, *(kind.strip("*") for kind in types)])


VARIANTS: list[Callable[..., Any]] = [
    *(row.module for row in LOSSES.values()),
    partial(OTTERLoss, epsilon=0.01),  # in logarithms
    OTTERLoss.official,
    partial(OTTERLoss.official, epsilon=0.01),
]
"""Every loss, and what else leads to other kernels."""


def recorded() -> list[Launch]:
    """All launches of all `VARIANTS`, dtypes and ways to spend memory: needs TRITON_INTERPRET=1."""
    found: dict[Launch, None] = {}

    def note(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        names = list(kernel.arg_names)
        given = dict(zip(names, arguments, strict=False))
        # A launch takes a 1 as a constant; here a small batch makes some that are not 1 in a large one.
        ones = [name for name, value in given.items() if isinstance(value, int) and value == 1]
        add(kernel, given, options, ones)
        add(kernel, given, options, [name for name in ones if name.endswith("stride")])

    def add(kernel: Any, given: dict[str, Any], options: dict[str, Any], ones: list[str]) -> None:
        names = list(kernel.arg_names)
        constants = {**dict.fromkeys(ones, 1), **{name: value for name, value in options.items() if name in names}}
        signature, aligned = [], []
        for position, name in enumerate(names):
            value = given.get(name)
            if name in constants:
                signature.append((name, "constexpr"))
            elif isinstance(value, torch.Tensor):
                signature.append((name, POINTERS[value.dtype]))
                if value.data_ptr() % 16 == 0:
                    aligned.append(position)
            else:
                signature.append((name, "fp32" if isinstance(value, float) else "i32"))
                if isinstance(value, int) and value % 16 == 0:
                    aligned.append(position)
        place = kernel.fn.__module__, kernel.fn.__name__
        sorted_constants = tuple(sorted(constants.items()))
        found.setdefault(Launch(*place, tuple(signature), sorted_constants, tuple(aligned), options["num_warps"]))

    generator = torch.Generator().manual_seed(0)
    dtypes = [dtype for dtype in POINTERS if dtype.is_floating_point]
    with small_blocks(), told(note):
        for dtype, pairs, build in itertools.product(dtypes, (48, 41), VARIANTS):
            features = F.normalize(torch.randn(4, pairs, 16, generator=generator), dim=-1).to(dtype)
            for max_memory in (2 << 30, 0):
                x, y, v, t = (each.clone().requires_grad_() for each in features)
                value = build(backend="triton", max_memory=max_memory)(x, y, 14.3, dist_image_features=v, dist_text_features=t)
                value.backward()
    return list(found)
