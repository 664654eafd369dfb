"""What a step must compute and move, kernel after kernel: operations and bytes, counted.

What is counted, and what is not, stands at the head of `benchmarks.roofline.floors`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.roofline.chips import Chip

DEFAULT_MAX_MEMORY = 17 << 30
"""An eighth of an H200's memory, as the library has it there."""
ROUNDS = 5
LOSSES = ("InfoNCE", "OTTER", "SigLIP", "eager ClipLoss")
SPLIT = 3
"""Products of float16 parts that make one of float32 factors: the parts' product of lowest order is left out."""
TORCH_BYTES = {"InfoNCE": 96 * 29.5 / 34, "OTTER": 290 * 56.5 / 76}
"""An entry's, of ``backend="torch"``: measured on an H100 at N = 32,768, less its products, times the copy's bandwidth; and that
in the ratio of the passes over N x N matrices counted since and then (docs/kernels.md)."""


@dataclass(frozen=True)
class Step:
    """Work that one kernel after another must do: `block` bytes may stay in the cache, `bytes` may not.

    `operations` are those of the matrix units, `single` those of float32; `epilogues` counts the entries that kernels work on
    beside multiplying.
    """

    name: str
    operations: float = 0.0
    bytes: float = 0.0
    block: float = 0.0
    single: float = 0.0
    epilogues: float = 0.0

    def seconds(self, chip: Chip, cached: bool) -> float:
        moved = self.bytes + (0.0 if cached else self.block)
        computed = self.operations / chip.half + self.single / chip.single + self.epilogues * chip.epilogue
        return max(computed, moved / chip.bandwidth)


class Work:
    """The steps of one loss at (N, D), in half precision or float32; of a rank that has some of the N rows alone.

    `computes`: kernels compute the tiles of products that they read, which then are never written; float32 ones from float16
    parts.
    """

    def __init__(
        self,
        pairs: int,
        width: int,
        half: bool,
        max_memory: int = DEFAULT_MAX_MEMORY,
        rows: int | None = None,
        computes: bool = True,
    ) -> None:
        rows = pairs if rows is None else rows
        self.pairs, self.width, self.half, self.max_memory = pairs, width, half, max_memory
        self.rows, self.computes = rows, computes
        self.square = float(rows) * pairs
        self.itemsize = 2 if half else 4
        self.features = 1.0 * self.itemsize * (rows + pairs) * width

    def _multiplied(self, name: str, moved: float, wide: int = 1, block: float = 0.0, epilogues: int = 0) -> Step:
        """One product by this library, where it is done: on the matrix units, unless float32 has no parts there."""
        count = 2 * self.square * self.width * wide
        if self.half or self.computes:
            operations = count if self.half else SPLIT * count
            return Step(name, operations, moved, block, epilogues=epilogues * self.square)
        return Step(name, 0.0, moved, block, single=count)

    def product(self, name: str, wide: int = 1, block: bool = True) -> Step:
        """Features times features; its block is written once, into the cache or, as a matrix that is kept, to memory."""
        written = 4 * self.square
        return self._multiplied(name, wide * self.features + (0 if block else written), wide, written if block else 0.0)

    def read(
        self, product: str, name: str, wide: int = 1, kept: float = 0.0, block: float = 0.0, epilogues: int = 1
    ) -> list[Step]:
        """A product, and a kernel that reads it beside kept matrices and other blocks, in bytes an entry: one step or two."""
        if not self.computes:
            return [self.product(product, wide), self.passes(name, kept, block + 4)]
        moved = wide * self.features + kept * self.square
        return [self._multiplied(f"{product}, {name}", moved, wide, block * self.square, epilogues)]

    def gradients(self) -> list[Step]:
        """``dx = G y`` and ``dy = G^T x``; G is one float16 matrix, or for float32 features two."""
        moved = self.itemsize * self.square + self.features
        return [self._multiplied(name, moved) for name in ("dx = G y", "dy = G^T x")]

    def passes(self, name: str, kept: float = 0.0, block: float = 0.0) -> Step:
        """A walk over kept matrices and over blocks, in bytes an entry."""
        return Step(name, 0.0, kept * self.square, block * self.square)

    def info_nce(self) -> list[Step]:
        """Log-sum-exps of the logits, and from them and the logits again their gradient."""
        if self.half or self.computes or 4 * self.square > self.max_memory:
            return [
                *self.read("cosines", "statistics"),
                *self.read("cosines again", "gradient of the logits", kept=self.itemsize),
                *self.gradients(),
            ]
        return [
            self.product("cosines", block=False),
            self.passes("statistics", kept=4),
            self.passes("gradient of the logits", kept=8),
            *self.gradients(),
        ]

    def siglip(self) -> list[Step]:
        """Each entry has a term and a gradient of its own: one pass."""
        return [*self.read("cosines", "losses and gradient of the logits", kept=self.itemsize), *self.gradients()]

    def stores_kernel(self) -> bool:
        return (2 if self.half else 4 if self.computes else 8) * self.square <= self.max_memory

    def otter(self) -> list[Step]:
        if not self.stores_kernel():
            return self._otter_recomputed()
        kept = self.itemsize
        if self.half or self.computes:
            return [
                *self.read("teacher", "K and opening sweep", wide=2, kept=kept),
                *self.rounds(),
                *self.read("cosines", "statistics", kept=kept, epilogues=2),
                *self.read("cosines again", "gradient of the logits", kept=2 * kept, epilogues=2),
                *self.gradients(),
            ]
        return [
            self.product("teacher", wide=2, block=False),
            self.passes("exponentials and opening sweep", kept=8),
            *self.rounds(),
            self.product("cosines", block=False),
            self.passes("statistics", kept=8),
            self.passes("gradient of the logits", kept=12),
            *self.gradients(),
        ]

    def rounds(self) -> list[Step]:
        """Both problems, a kernel K that is kept: rows, then columns."""
        return [self.passes(f"round {count + 1}: K twice", kept=2 * self.itemsize) for count in range(ROUNDS)]

    def _otter_recomputed(self) -> list[Step]:
        rounds = [
            step
            for count in range(ROUNDS)
            for step in (self.product(f"teacher, round {count + 1}", wide=2), self.passes(f"round {count + 1}", block=8))
        ]
        return [
            *self.read("teacher", "opening sweep", wide=2),
            *rounds,
            self.product("teacher, statistics", wide=2),
            *self.read("cosines", "statistics", block=4, epilogues=2),
            self.product("teacher, gradient", wide=2),
            *self.read("cosines again", "gradient of the logits", kept=self.itemsize, block=4, epilogues=2),
            *self.gradients(),
        ]

    def targets(self) -> list[Step]:
        """Both targets of a teacher, written out in float32."""
        kept = self.itemsize
        return [
            *self.read("teacher", "K and opening sweep", wide=2, kept=kept),
            *self.rounds(),
            self.passes("both targets", kept=kept + 8),
        ]

    def torch(self, loss: str) -> list[Step]:
        """``backend="torch"``: products by the vendor, all else in passes."""
        wide = {"InfoNCE": 4, "OTTER": 6}[loss]
        products = Step("products", wide * 2 * self.square * self.width, wide * self.features)
        return [products, self.passes("passes", kept=TORCH_BYTES[loss])]

    def eager_clip(self) -> list[Step]:
        """open_clip's ClipLoss in torch, under autocast for half precision: each direction has its own logits."""
        size = self.itemsize
        cast = size != 4
        operations = 2 * self.square * self.width

        def multiplied(name: str) -> Step:
            moved = self.features + size * self.square
            return Step(name, operations, moved) if cast else Step(name, 0.0, moved, single=operations)

        direction = [
            multiplied("logits"),
            *([self.passes("to float32", kept=size + 4)] if cast else []),
            self.passes("log_softmax", kept=8),
            self.passes("gradient of nll_loss", kept=4),
            self.passes("gradient of log_softmax", kept=12),
            *([self.passes("from float32", kept=4 + size)] if cast else []),
            multiplied("dx = G y"),
            multiplied("dy = G^T x"),
        ]
        return 2 * direction

    def steps(self, loss: str) -> list[Step]:
        ways: dict[str, Callable[[], list[Step]]] = {
            "InfoNCE": self.info_nce,
            "SigLIP": self.siglip,
            "OTTER": self.otter,
            "eager ClipLoss": self.eager_clip,
            "targets": self.targets,
            "InfoNCE, torch": lambda: self.torch("InfoNCE"),
            "OTTER, torch": lambda: self.torch("OTTER"),
        }
        return ways[loss]()

    def on(self, chip: Chip) -> "Work":
        """The same, as the chip does it."""
        return Work(self.pairs, self.width, self.half, self.max_memory, self.rows, chip.computes_tiles)

    def milliseconds(self, loss: str, chip: Chip, cached: bool) -> float:
        return 1e3 * sum(step.seconds(chip, cached) for step in self.on(chip).steps(loss))
