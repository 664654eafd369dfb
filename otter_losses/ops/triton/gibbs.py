"""The Gibbs kernel of a batch's transport for Triton's kernels: stored, or made anew from its product. See `kernels.tiles`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops import products
from otter_losses.ops.domains import NEARLY_NORMALISED, safe_range
from otter_losses.ops.memory import row_blocks
from otter_losses.ops.problem import Problem, Saved
from otter_losses.ops.products import HALVES
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.targets import SoftTargets
from otter_losses.ops.triton.features import LIFT
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.kernels import similarity as kernels
from otter_losses.ops.triton.kernels.tiles import CODES, LOGARITHMIC, PLAIN
from otter_losses.ops.triton.launch import FEATURES, launch, tiles

NO_KERNEL: dict[str, object] = {"KIND": PLAIN.value, "RAW": False, "APART": False}
"""How a kernel reads a Gibbs kernel that is not there."""


@dataclass(frozen=True, eq=False)
class GibbsKernel:
    """The local rows of a batch's Gibbs kernel: stored, or made anew from their product, block by block. See `kernels.tiles`.

    Attributes:
        source: the factors whose product it is of; None where it is stored already.
        params: `Saved.scalars`.
        kind: how it is held.
        stored: (b, N) in float32 or, for codes, int16; None where it is recomputed.
        rows: the local rows, of all N.
        columns: N.
        space: memory for the product of a block that is not stored.
        groups: `Similarity.groups`.
    """

    source: TileSource | None
    params: Tensor
    kind: int
    stored: Tensor | None
    rows: slice
    columns: int
    space: Tensor
    groups: Tensor | None

    @classmethod
    def build(cls, problem: Problem, saved: Saved) -> "GibbsKernel":
        """Kept in ``saved.gibbs`` where it is to be stored; `solve` fills that. Its numbers go to ``saved.scalars``."""
        similarity, stored, kind = _decided(problem, saved)
        source, peaks, unlift = _factors(similarity, kind)
        _write_params(similarity, peaks, kind, unlift, saved.scalars)
        b, n = similarity.shape
        return cls._of(similarity, source, saved.scalars, kind, stored, row_blocks(b, n, saved.scalars.device)[0].stop * n)

    @classmethod
    def again(cls, problem: Problem, saved: Saved, block: int) -> "GibbsKernel":
        """The one that was built and saved, for blocks of so many entries."""
        similarity, stored, kind = _decided(problem, saved)
        source = _factors(similarity, kind)[0] if stored is None else None
        return cls._of(similarity, source, saved.scalars, kind, stored, block)

    @classmethod
    def _of(
        cls, similarity: Similarity, source: TileSource | None, params: Tensor, kind: int, stored: Tensor | None, block: int
    ) -> "GibbsKernel":
        space = params.new_empty(block if stored is None else 0)
        return cls(source, params, kind, stored, similarity.rows, similarity.shape[1], space, similarity.groups)

    @property
    def switches(self) -> dict[str, object]:
        """How a kernel reads it."""
        is_raw = self.stored is None
        return {"KIND": self.kind, "RAW": is_raw, "APART": is_raw and self.groups is not None}

    def kept_apart(self, rows: slice, columns: slice = slice(None), encodes: bool = False) -> dict[str, Tensor]:
        """The groups of some local rows and of some columns, for kernels that lower entries; something else where none does."""
        if self.groups is None or not (encodes or self.stored is None):
            return {"apart_rows": self.params, "apart_columns": self.params}
        offset = self.rows.start
        return {"apart_rows": self.groups[offset + rows.start : offset + rows.stop], "apart_columns": self.groups[columns]}

    @property
    def is_logarithmic(self) -> bool:
        return self.kind == int(LOGARITHMIC.value)

    @property
    def is_codes(self) -> bool:
        return self.kind == int(CODES.value)

    def row_blocks(self) -> list[slice]:
        return row_blocks(self.rows.stop - self.rows.start, self.columns, self.params.device)

    def row_offset(self, rows: slice) -> int:
        """Row of a block's first in the whole matrix."""
        return int(self.rows.start + rows.start)

    def block(self, rows: slice, columns: slice = slice(None)) -> Tensor:
        """The local rows asked for, or some columns of them: stored, or their product."""
        if self.stored is not None:
            return self.stored[rows, columns]
        assert self.source is not None
        return self.source.product(rows, columns, self.space)

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, in one block where they are stored."""
        for rows in self.row_blocks() if self.stored is None else [slice(0, self.rows.stop - self.rows.start)]:
            yield rows, self.block(rows)


def _decided(problem: Problem, saved: Saved) -> tuple[Similarity, Tensor | None, int]:
    """The similarity, where its kernel is stored, and how: before any feature is looked at."""
    similarity = problem.similarity
    assert similarity is not None
    assert problem.soft is not None
    stored = None if problem.storage.gibbs is None else saved.gibbs
    return similarity, stored, _kind(problem.soft, problem.storage.gibbs)


def _kind(soft: SoftTargets, stored: torch.dtype | None) -> int:
    if stored == torch.int16:
        return int(CODES.value)
    return int(PLAIN.value if soft.fit(torch.float32) else LOGARITHMIC.value)


def _factors(similarity: Similarity, kind: int) -> tuple[TileSource, Tensor, float]:
    """The factors of the kernel's product, of the local rows, the peaks of the features' norms, and what to undo a lift with.

    Of half-precision features they are those themselves, sums of them one plane of float16: an error of L of about
    ``1e-5 / epsilon``. Where epsilon is too small for plain numbers, it is too small for that: two planes, as of float32.
    """
    v, t = similarity.image_features, similarity.text_features
    n, e = v.shape
    image, text = similarity.gamma_image > 0, similarity.gamma_text > 0
    planes = 1 if v.dtype in HALVES and kind != LOGARITHMIC.value else 2
    if not products.computes_tiles(v.device, v.dtype) or (v.dtype in HALVES and not (image or text)):
        planes = 0
    a, b = v, t
    if image or text or planes:
        width = (2 * e if image and text else e) * max(2 * planes - 1, 1)
        dtype = torch.float16 if planes or (v.dtype in HALVES and kind != LOGARITHMIC.value) else torch.float32
        a, b = v.new_empty(2, n, width, dtype=dtype).unbind()
    # Of unit features no entry is greater than 1, nor of their weighted sums than 1 and the weight.
    lift = LIFT / 2.0 ** math.ceil(math.log2(1 + max(similarity.gamma_image, similarity.gamma_text)))
    programs = tiles(n, FEATURES["BM"])
    peaks = similarity.inv_epsilon.new_empty(programs, 2)
    launch(
        kernels.SIMILARITY_FACTORS,
        (programs,),
        FEATURES,
        v=v,
        t=t,
        a=a,
        b=b,
        peaks=peaks,
        n=n,
        e=e,
        v_row_stride=v.stride(0),
        v_stride=v.stride(1),
        t_row_stride=t.stride(0),
        t_stride=t.stride(1),
        gamma_image=similarity.gamma_image,
        gamma_text=similarity.gamma_text,
        lift=lift,
        IMAGE=image,
        TEXT=text,
        PLANES=planes,
    )
    return TileSource.of(a[similarity.rows], b), peaks, lift**-2 if planes else 1.0


def _write_params(similarity: Similarity, peaks: Tensor, kind: int, unlift: float, out: Tensor) -> None:
    kernel = kernels.GIBBS_PARAMS
    launch(
        kernel,
        (1,),
        kernel.tiles[0],
        peaks=peaks,
        inv_epsilon=similarity.inv_epsilon,
        out=out,
        programs=len(peaks),
        unlift=unlift,
        penalty=similarity.diagonal_penalty,
        gamma_image=similarity.gamma_image,
        gamma_text=similarity.gamma_text,
        limit=math.inf if kind == LOGARITHMIC.value else NEARLY_NORMALISED * safe_range(torch.float32) / 2,
    )
