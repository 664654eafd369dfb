"""Features standardised, reduced to their principal components and rounded, so that products of them are exact."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.audit.features import Rows
from otter_losses.distributed.shard import BatchShard

UNIT = 4096
"""A unit vector's length in whole numbers: the products of two, and all their partial sums, stay within 2^24."""

CONSTANT = 1e-12
"""A dimension's variance over its mean square, below which it is constant but for rounding; so of components over the largest."""

Told = Callable[[int], None]
"""What is told of how many rows are done."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows in float64: how many, of the features (D,), of their products (D, D)."""

    count: int
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, rows: Rows, told: Told) -> "Moments":
        """Of finite features of one scale.

        Raises:
            ValueError: which names the rows that are not.
        """
        sums = torch.zeros(rows.width, dtype=torch.float64, device=rows.device)
        products = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=rows.device)
        norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        for where, block in rows.blocks():
            norms[where] = block.norm(dim=1)
            sums += block.sum(0)
            products.addmm_(block.T, block)
            told(where.stop)
        rows.refuse_rows(norms)
        return cls(len(rows), sums, products)

    def of_all(self, shard: BatchShard) -> "Moments":
        """Summed over the ranks."""
        return Moments(shard.batch_size(self.count), shard.all_reduce_sum_(self.sums), shard.all_reduce_sum_(self.products))

    @property
    def mean(self) -> Tensor:
        return self.sums / self.count

    @property
    def covariance(self) -> Tensor:
        return self.products / self.count - torch.outer(self.mean, self.mean)

    @property
    def precision(self) -> Tensor:
        """One over the standard deviations (D,); 0 where a dimension is constant, so that it drops out."""
        variance = self.covariance.diagonal()
        varies = variance > CONSTANT * self.products.diagonal() / self.count
        return torch.where(varies, variance.rsqrt(), 0.0)


def principal(covariance: Tensor, components: int) -> Tensor:
    """The components of the largest variance, (D, at most `components`)."""
    values, vectors = torch.linalg.eigh(covariance.cpu())
    kept = (values > CONSTANT * values[-1]).nonzero().flatten()[-components:]
    found: Tensor = vectors[:, kept].to(covariance.device)
    return found


@dataclass(frozen=True)
class Projection:
    """``(features - mean) @ matrix``, of unit length, in whole numbers of 1 / `UNIT`."""

    mean: Tensor
    matrix: Tensor

    @classmethod
    def standardised(cls, name: str, moments: Moments, components: int) -> "Projection":
        """Every dimension to variance 1, then the principal components."""
        inverse = moments.precision
        if not bool((inverse > 0).any()):
            raise ValueError(f"{name} has equal rows; need features that differ from pair to pair. Check what was encoded.")
        correlation = moments.covariance * torch.outer(inverse, inverse)
        return cls(moments.mean, inverse[:, None] * principal(correlation, components))

    def __call__(self, rows: Rows, told: Told) -> Tensor:
        """(N, components) float16."""
        projected = torch.empty(len(rows), self.matrix.shape[1], dtype=torch.float16, device=rows.device)
        for where, block in rows.blocks():
            projected[where] = whole((block - self.mean) @ self.matrix)
            told(where.stop)
        return projected


def unit(components: int) -> float:
    """The length of `whole` vectors before they are rounded, by 1/2, or 3/2 where above 2048, to less than `UNIT`."""
    return UNIT - 3 - math.sqrt(components) / 2


def whole(vectors: Tensor) -> Tensor:
    """Rows (N, c) to their directions in whole numbers, float16; rows of zeros stay so.

    Float32 then adds the products of any two without rounding, in any order, so that what comes of them does not depend on blocks
    or threads. A cosine is off by about 1e-4.
    """
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    units = vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)
    rounded: Tensor = (units * unit(vectors.shape[1])).round().to(torch.float16)
    return rounded
