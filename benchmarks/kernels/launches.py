"""Everything that the losses launch, noted without running it."""

import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from otter_losses import LabelSmoothingLoss, OTTERLoss, SigLIPLoss, sinkhorn_knopp
from otter_losses.functional import otter_targets
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import memory, products

if TYPE_CHECKING:
    from otter_losses.ops.triton.launch import Kernel

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int16: "*i16", torch.int32: "*i32"}

DESCRIPTOR = "tensordesc<"

Constants = tuple[tuple[str, int | bool], ...]


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments and its constants, as a launch specialises them.

    `tiles` are all that it may be launched with, as sorted items; a launch's own stands in `tile`. A tensor descriptor's type in
    `signature` names the sides of its block as the tile does: ``tensordesc<bf16[BM, BK]>``.
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: Constants
    aligned: tuple[int, ...]
    tile: Constants
    tiles: tuple[Constants, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Launch":
        """From JSON."""
        return cls(**{name: _tuples(value) for name, value in row.items()})

    def choices(self) -> "list[Launch]":
        """The same with every tile that the kernel may be launched with; in an odd batch the first is proof enough."""
        several = self.usual and not self.grouped and not (self.computed and (self.divergence or self.float16))
        return [self._with(tile) for tile in self.tiles] if several else [self]

    def _with(self, tile: Constants) -> "Launch":
        """With another tile; features, and codes beside them, come as descriptors where that says so."""
        if not (self.computed and dict(tile)["DESCRIPTORS"]):
            return replace(self, tile=tile)
        blocks = {"left": "BM, BK", "right": "BN, BK", "gibbs": "BM, BN"}
        if "*i16" not in dict(self.signature).get("gibbs", ""):
            del blocks["gibbs"]
        signature = tuple(
            (name, f"{DESCRIPTOR}{kind.strip('*')}[{blocks[name]}]>" if name in blocks else kind) for name, kind in self.signature
        )
        names = [name for name, _ in signature]
        aligned = tuple(position for position in self.aligned if names[position] not in blocks)
        return replace(self, tile=tile, signature=signature, aligned=aligned)

    @property
    def described(self) -> bool:
        """Whether it loads by tensor descriptors."""
        return any(kind.startswith(DESCRIPTOR) for _, kind in self.signature)

    @property
    def types(self) -> dict[str, str]:
        """Of the arguments by their names, with the tile's numbers in place of its names."""
        sizes = {name: str(value) for name, value in self.tile}
        return {
            name: re.sub(r"\b[A-Z]+\b", lambda side: sizes[side[0]], kind) if kind.startswith(DESCRIPTOR) else kind
            for name, kind in self.signature
        }

    @property
    def computed(self) -> bool:
        """Whether it computes its tile of cosines instead of loading it."""
        return dict(self.constants).get("COMPUTED", False) is True

    @property
    def uneven(self) -> bool:
        """Whether its tiles do not end where the matrix does."""
        return dict(self.constants).get("EVEN") is False

    @property
    def divergence(self) -> bool:
        return dict(self.constants).get("DIVERGENCE", False) is True

    @property
    def grouped(self) -> bool:
        """Whether it tells pairs' entries by groups."""
        return any(dict(self.constants).get(name, False) is True for name in ("GROUPS", "APART"))

    @property
    def float16(self) -> bool:
        """Whether it computes from float16 features: the same code as from bfloat16."""
        return _element(dict(self.signature).get("left", "")) == "fp16"

    @property
    def soft(self) -> bool:
        """Whether it has soft targets."""
        return dict(self.constants).get("SOFT", True) is True

    def constexprs(self, names: list[str]) -> dict[str, int | bool]:
        """All constants among the kernel's arguments of these names."""
        return {name: value for name, value in (*self.constants, *self.tile) if name in names}

    @property
    def options(self) -> dict[str, int | bool]:
        """What the compiler is told beside: warps and pipeline stages."""
        return {name: value for name, value in self.tile if name.startswith("num_")}

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
        words += ["described"] if self.described else []
        types = {_element(kind) for name, kind in self.signature if name in ("gibbs", "g", "out", "values", "left", "scores")}
        return " ".join([*words, *sorted(types - {"fp32"})])


class InGroups:
    """A loss of pairs of which two each are of one group."""

    def __init__(self, build: Callable[..., PairLoss], **options: Any) -> None:
        self.loss = build(**options)

    def __call__(self, x: torch.Tensor, *rest: Any, **call: Any) -> Any:
        return self.loss(x, *rest, **call, groups=torch.arange(len(x)) // 2)


VARIANTS: list[Callable[..., Any]] = [
    *(row.module for row in LOSSES.values()),
    partial(OTTERLoss, epsilon=0.01),  # in logarithms
    OTTERLoss.official,
    partial(OTTERLoss.official, epsilon=0.01),
    partial(OTTERLoss, reduction="none"),
    partial(SigLIPLoss, reduction="none"),
    partial(OTTERLoss, q=0.3),
]
"""Every loss, and what else leads to other kernels."""

GROUPED: list[Callable[..., Any]] = [
    partial(InGroups, build)
    for build in (
        OTTERLoss,
        partial(OTTERLoss, epsilon=0.01),
        LabelSmoothingLoss,
        SigLIPLoss,
        partial(SigLIPLoss, reduction="none"),
    )
]
"""In groups the same kernels tell pairs' entries by ids."""

IN_GROUPS = ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True))
"""What they are proven with: features, and whether kernels compute tiles of their products."""


def _element(kind: str) -> str:
    """The type of what a pointer or a descriptor points to."""
    return kind.removeprefix(DESCRIPTOR).split("[")[0].strip("*")


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def recorded() -> list[Launch]:
    """All launches of all `VARIANTS`, dtypes and ways to spend memory: needs TRITON_INTERPRET=1."""
    from otter_losses.ops.triton.launch import observed

    found: dict[Launch, None] = {}

    def note(kernel: "Kernel", arguments: Mapping[str, object]) -> None:
        # A launch takes a 1 as a constant; here a small batch makes some that are not 1 in a large one.
        ones = [name for name, value in arguments.items() if type(value) is int and value == 1]
        found.setdefault(_launch(kernel, arguments, ones))
        found.setdefault(_launch(kernel, arguments, [name for name in ones if name.endswith("stride")]))

    generator = torch.Generator().manual_seed(0)
    dtypes = [dtype for dtype in POINTERS if dtype.is_floating_point]
    # 256 pairs and a width of 64 fill whole tiles, as large batches do, in two blocks; 272 leave a rest, 41 and 24 are odd.
    sizes = ((256, 64), (41, 24))
    whole = itertools.product(dtypes, sizes, (True, False))
    kinds = [*whole, (torch.bfloat16, (272, 64), True)]
    blocks = {
        "cpu_block_elements": 1,
        "cpu_block_rows": 128,
        "device_pass_elements": 1,
        "device_gradient_elements": 1 << 14,
        "device_gradient_rows": 128,
    }
    with memory.limits(**blocks, codes_from=0), observed(note, runs=False):
        ways = [*itertools.product(kinds, VARIANTS)]
        ways += [((dtype, sizes[0], computes), build) for dtype, computes in IN_GROUPS for build in GROUPED]
        for (dtype, (pairs, width), computes), build in ways:
            features = F.normalize(torch.randn(4, pairs, width, generator=generator), dim=-1).to(dtype)
            with patch.object(products, "computes_tiles", lambda device, dtype, computes=computes: computes):
                for max_memory in (2 << 30, 0):
                    x, y, v, t = (each.clone().requires_grad_() for each in features)
                    loss = build(backend="triton", max_memory=max_memory)
                    loss(x, y, 14.3, dist_image_features=v, dist_text_features=t).sum().backward()
        for size in (48, 41):
            for epsilon in (0.15, 0.01):
                otter_targets(
                    *F.normalize(torch.randn(2, size, 64, generator=generator), dim=-1), epsilon=epsilon, backend="triton"
                )
            _match(torch.randn(2, size, size, generator=generator))
    return list(found)


def _match(scores: torch.Tensor) -> None:
    """Transport alone, in every way that leads to another kernel."""
    for given in (scores, scores.bfloat16()):
        sinkhorn_knopp(given, backend="triton")
    sinkhorn_knopp(scores, tolerance=1e-3, backend="triton")
    start = torch.zeros(scores.shape[-1])
    plan = sinkhorn_knopp(scores.requires_grad_(), column_potential=start, backend="triton")
    (plan * scores.detach()).sum().backward()  # type: ignore[no-untyped-call]


def _launch(kernel: "Kernel", arguments: Mapping[str, object], ones: list[str]) -> Launch:
    """With these arguments taken as a constant 1."""
    parameters = inspect.signature(kernel.function.fn).parameters
    constexprs = {name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)}
    computed = arguments.get("COMPUTED") is True
    tiles = [tuple(sorted(tile.items())) for tile in (kernel.computing_tiles if computed else kernel.tiles)]
    tile = next(each for each in tiles if all(arguments[name] == value for name, value in each))
    names = dict(tile)
    constants = {name: arguments[name] for name in constexprs if name in arguments and name not in names}
    constants |= dict.fromkeys(ones, 1)
    signature, aligned = [], []
    for position, name in enumerate(parameters):
        value = arguments[name]
        if name in constants or name in constexprs:
            signature.append((name, "constexpr"))
        elif isinstance(value, torch.Tensor):
            signature.append((name, POINTERS[value.dtype]))
            if value.data_ptr() % 16 == 0:
                aligned.append(position)
        else:
            signature.append((name, "fp32" if isinstance(value, float) else "i32"))
            if isinstance(value, int) and value % 16 == 0:
                aligned.append(position)
    return Launch(
        kernel.function.fn.__module__,
        kernel.name,
        tuple(signature),
        tuple(sorted(constants.items())),  # type: ignore[arg-type]
        tuple(aligned),
        tile,
        tuple(tiles),
    )
