"""Everything that the losses launch, noted without running it."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from otter_losses import OTTERLoss, sinkhorn_knopp
from otter_losses.functional import otter_targets
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import memory

if TYPE_CHECKING:
    from otter_losses.ops.triton.launch import Kernel

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int16: "*i16", torch.int32: "*i32"}


Constants = tuple[tuple[str, int | bool], ...]


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments and its constants, as a launch specialises them.

    `tiles` are all that it may be launched with, as sorted items; a launch's own stands in `tile`.
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
        several = self.usual and not (self.computed and (self.divergence or self.float16))
        return [replace(self, tile=tile) for tile in self.tiles] if several else [self]

    @property
    def computed(self) -> bool:
        """Whether it computes its tile of cosines instead of loading it."""
        return dict(self.constants).get("COMPUTED", False) is True

    @property
    def divergence(self) -> bool:
        return dict(self.constants).get("DIVERGENCE", False) is True

    @property
    def float16(self) -> bool:
        """Whether it computes from float16 features: the same code as from bfloat16."""
        return dict(self.signature).get("left") == "*fp16"

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
        types = sorted(
            {
                kind
                for name, kind in self.signature
                if name in ("gibbs", "g", "out", "values", "left", "scores") and kind != "*fp32"
            }
        )
        return " ".join([*words, *(kind.strip("*") for kind in types)])


VARIANTS: list[Callable[..., Any]] = [
    *(row.module for row in LOSSES.values()),
    partial(OTTERLoss, epsilon=0.01),  # in logarithms
    OTTERLoss.official,
    partial(OTTERLoss.official, epsilon=0.01),
]
"""Every loss, and what else leads to other kernels."""


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
    # 48 pairs and a width of 64 fill whole tiles, as large batches do; 41 and 24 do not.
    sizes = ((48, 64), (41, 24))
    with memory.limits(cpu_block_elements=1, cpu_block_rows=32, codes_from=0), observed(note, runs=False):
        for dtype, (pairs, width), build in itertools.product(dtypes, sizes, VARIANTS):
            features = F.normalize(torch.randn(4, pairs, width, generator=generator), dim=-1).to(dtype)
            for max_memory in (2 << 30, 0):
                x, y, v, t = (each.clone().requires_grad_() for each in features)
                value = build(backend="triton", max_memory=max_memory)(x, y, 14.3, dist_image_features=v, dist_text_features=t)
                value.backward()
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
