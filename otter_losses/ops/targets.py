"""The targets that a cross entropy can have, for both directions at once: rows are images, columns texts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.domains import safe_range
from otter_losses.ops.similarity import Similarity


@dataclass(frozen=True)
class HardTargets:
    """The given pairs: ``T_ij = on_pair * delta_ij + uniform``, in groups with 1 in place of delta for all pairs of one.

    Attributes:
        on_pair, uniform: numbers, or 0-D tensors of the computing dtype; of groups one for each pair's row and column, (N,).
        groups: `Groups.ids`; None where each pair stands for itself.
    """

    on_pair: float | Tensor = 1.0
    uniform: float | Tensor | None = None
    groups: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every pair's target is the pair itself."""
        return self.uniform is None and self.groups is None

    def as_tensor(self, like: Tensor) -> Tensor:
        """Both numbers, (2,) or (2, N), made where the device is."""
        both = like.new_empty(2) if self.groups is None else like.new_empty(2, len(self.groups))
        for place, number in zip(both, (self.on_pair, 0.0 if self.uniform is None else self.uniform), strict=True):
            place.copy_(number) if isinstance(number, Tensor) else place.fill_(number)
        return both

    def of_pairs(self, values: Tensor, rows: slice) -> Tensor:
        """Values of some pairs, (..., b), times `on_pair`."""
        if isinstance(self.on_pair, Tensor):
            return values * (self.on_pair[rows] if self.on_pair.dim() else self.on_pair)
        return values if self.on_pair == 1 else values * self.on_pair

    def of_uniform(self, values: Tensor, rows: slice = slice(None)) -> Tensor:
        """Values of some pairs, (..., b), times `uniform`."""
        assert self.uniform is not None
        return values * (self.uniform[rows] if isinstance(self.uniform, Tensor) and self.uniform.dim() else self.uniform)


@dataclass(frozen=True, eq=False)
class Mean:
    """What is wanted of the pairs' cross entropies: two weighted means over pairs and directions, given and soft.

    Attributes:
        alpha: weight of the given targets; the soft ones' is the rest.
        prior: one alpha for each pair, (b,), in place of that; None for none.
        factor: what the weighted sums are multiplied with.
        q: of the generalised cross entropy that those against the given targets become; 0 for none.
    """

    alpha: float
    prior: Tensor | None
    factor: float
    q: float = 0.0


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's matches: transported, or without an iteration the row softmax of ``L`` and of ``L^T`` (`Similarity`).

    Attributes:
        image_features, text_features: the teacher's features of all pairs, (N, E), constants; None for the student's own.
        inv_epsilon: 0-D, of the computing dtype: what the similarities are multiplied with.
        gamma_image, gamma_text: weights of the similarities within a modality.
        diagonal_penalty: what the diagonal is lowered by, in units of the cosines; infinite takes it out.
        logit_range: upper bound on ``max L - min L`` for unit features, a diagonal that vanishes aside; infinite for no bound.
        iterations: rounds of Sinkhorn-Knopp.
        divergence: whether the targets' own entropy is taken off the cross entropy, which leaves a Kullback-Leibler divergence.
        groups: ids (N,) of pairs whose entries with one another are taken out with the diagonal (`Groups.kept_apart`).
    """

    image_features: Tensor | None
    text_features: Tensor | None
    inv_epsilon: Tensor
    gamma_image: float
    gamma_text: float
    diagonal_penalty: float
    logit_range: float
    iterations: int = 0
    divergence: bool = False
    groups: Tensor | None = None

    def similarity(self, image_features: Tensor, text_features: Tensor, rows: slice) -> Similarity:
        """The given rows of the similarities, with the student's features (N, D) for a teacher that has none.

        One pair alone has no other: its own entry stays.
        """
        is_alone = len(text_features) == 1
        return Similarity(
            image_features if self.image_features is None else self.image_features,
            text_features if self.text_features is None else self.text_features,
            self.inv_epsilon,
            self.gamma_image,
            self.gamma_text,
            0.0 if is_alone else self.diagonal_penalty,
            rows,
            None if is_alone else self.groups,
        )

    @property
    def weights(self) -> tuple[float, float, float]:
        return self.gamma_image, self.gamma_text, self.diagonal_penalty

    def fit(self, dtype: torch.dtype) -> bool:
        """Whether plain numbers of the type hold their Gibbs kernel, if the teacher's features have unit norm."""
        return self.logit_range <= safe_range(dtype)

    @property
    def uses_student(self) -> bool:
        """Whether the student is its own teacher."""
        return self.image_features is None


def logit_range(epsilon: float, gamma_image: float, gamma_text: float, diagonal_penalty: float, dtype: torch.dtype) -> float:
    """No two of a unit-norm teacher's logits are further apart, a diagonal that vanishes aside."""
    lowered = 0.0 if diagonal_vanishes(diagonal_penalty / epsilon, dtype) else diagonal_penalty
    return (2 * (gamma_image + gamma_text + 1) + lowered) / epsilon


def diagonal_vanishes(lowered: float, dtype: torch.dtype) -> bool:
    """Whether a diagonal lowered by that much carries no mass where the other entries span no more than `safe_range`.

    The scalings make up for twice that span at most.
    """
    return lowered > 4 * safe_range(dtype)
