"""What a step must compute and move, kernel after kernel: operations and bytes, counted.

What is counted, and what is not, stands at the head of `benchmarks.roofline.floors`.
"""

from dataclasses import dataclass

from benchmarks.roofline.chips import Chip

DEFAULT_MAX_MEMORY = 17 << 30
"""An eighth of an H200's memory, as the library has it there."""
ROUNDS = 5
LOSSES = ("InfoNCE", "OTTER", "SigLIP", "eager ClipLoss")


@dataclass(frozen=True)
class Step:
    """Work that one kernel after another must do: `block` bytes may stay in the cache, `bytes` may not."""

    name: str
    operations: float = 0.0
    bytes: float = 0.0
    block: float = 0.0

    def seconds(self, chip: Chip, half: bool, cached: bool) -> float:
        moved = self.bytes + (0.0 if cached else self.block)
        return max(self.operations / (chip.half if half else chip.single), moved / chip.bandwidth)


class Work:
    """The steps of one loss at (N, D), in half precision or float32; of a rank that has some of the N rows alone.

    `computes`: kernels compute the tiles of half-precision products that they read, which then are never written.
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
        self.rows, self.computes = rows, half and computes
        self.square = float(rows) * pairs
        self.itemsize = 2 if half else 4
        self.features = 1.0 * self.itemsize * (rows + pairs) * width

    def product(self, name: str, wide: int = 1, block: bool = True) -> Step:
        """Features times features; its block is written once, into the cache or, as a matrix that is kept, to memory."""
        written = 4 * self.square
        operations = 2 * self.square * self.width * wide
        return Step(name, operations, wide * self.features + (0 if block else written), written if block else 0.0)

    def read(self, product: str, name: str, wide: int = 1, kept: float = 0.0, block: float = 0.0) -> list[Step]:
        """A product, and a kernel that reads it beside kept matrices and other blocks, in bytes an entry: one step or two."""
        multiplied = self.product(product, wide)
        walked = self.passes(name, kept, block)
        if not self.computes:
            return [multiplied, self.passes(name, kept, block + 4)]
        moved = multiplied.bytes + walked.bytes
        return [Step(f"{product}, {name}", multiplied.operations, moved, walked.block)]

    def gradients(self) -> list[Step]:
        """``dx = G y`` and ``dy = G^T x``."""
        moved = self.itemsize * self.square + self.features
        return [Step(name, 2 * self.square * self.width, moved) for name in ("dx = G y", "dy = G^T x")]

    def passes(self, name: str, kept: float = 0.0, block: float = 0.0) -> Step:
        """A walk over kept matrices and over blocks, in bytes an entry."""
        return Step(name, 0.0, kept * self.square, block * self.square)

    def plain(self) -> list[Step]:
        """InfoNCE, and SigLIP, which reads and writes the same: cosines, a reduction of them, their gradient."""
        if self.half or 4 * self.square > self.max_memory:
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

    def stores_kernel(self) -> bool:
        return (2 if self.half else 8) * self.square <= self.max_memory

    def otter(self) -> list[Step]:
        if not self.stores_kernel():
            return self._otter_recomputed()
        if self.half:
            return [
                *self.read("teacher", "codes and opening sweep", wide=2, kept=2),
                *(self.passes(f"round {count + 1}: codes twice", kept=4) for count in range(ROUNDS)),
                *self.read("cosines", "statistics", kept=2),
                *self.read("cosines again", "gradient of the logits", kept=4),
                *self.gradients(),
            ]
        return [
            self.product("teacher", wide=2, block=False),
            self.passes("exponentials and opening sweep", kept=8),
            *(self.passes(f"round {count + 1}: K twice", kept=8) for count in range(ROUNDS)),
            self.product("cosines", block=False),
            self.passes("statistics", kept=8),
            self.passes("gradient of the logits", kept=12),
            *self.gradients(),
        ]

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
            *self.read("cosines", "statistics", block=4),
            self.product("teacher, gradient", wide=2),
            *self.read("cosines again", "gradient of the logits", kept=self.itemsize, block=4),
            *self.gradients(),
        ]

    def eager_clip(self) -> list[Step]:
        """open_clip's ClipLoss in torch, under autocast for half precision: each direction has its own logits."""
        size = self.itemsize
        cast = size != 4
        direction = [
            Step("logits", 2 * self.square * self.width, self.features + size * self.square),
            *([self.passes("to float32", kept=size + 4)] if cast else []),
            self.passes("log_softmax", kept=8),
            self.passes("gradient of nll_loss", kept=4),
            self.passes("gradient of log_softmax", kept=12),
            *([self.passes("from float32", kept=4 + size)] if cast else []),
            *self.gradients(),
        ]
        return 2 * direction

    def steps(self, loss: str) -> list[Step]:
        return {"InfoNCE": self.plain, "SigLIP": self.plain, "OTTER": self.otter, "eager ClipLoss": self.eager_clip}[loss]()

    def on(self, chip: Chip) -> "Work":
        """The same, as the chip does it."""
        return Work(self.pairs, self.width, self.half, self.max_memory, self.rows, chip.computes_tiles)

    def milliseconds(self, loss: str, chip: Chip, cached: bool) -> float:
        return 1e3 * sum(step.seconds(chip, self.half, cached) for step in self.on(chip).steps(loss))
