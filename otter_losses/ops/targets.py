"""The targets that a cross entropy can have, for both directions at once: rows are images, columns texts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.domains import safe_range
from otter_losses.ops.similarity import Similarity


@dataclass(frozen=True)
class HardTargets:
    """The given pairs: ``T_ij = on_diagonal * delta_ij + uniform``; numbers, or 0-D tensors of the computing dtype."""

    on_diagonal: float | Tensor = 1.0
    uniform: float | Tensor | None = None

    def as_tensor(self, like: Tensor) -> Tensor:
        """Both numbers, (2,), made where the device is."""
        both = like.new_empty(2)
        for place, number in zip(both, (self.on_diagonal, 0.0 if self.uniform is None else self.uniform), strict=True):
            place.copy_(number) if isinstance(number, Tensor) else place.fill_(number)
        return both

    def of_diagonal(self, values: Tensor) -> Tensor:
        """Values times `on_diagonal`."""
        is_one = not isinstance(self.on_diagonal, Tensor) and self.on_diagonal == 1
        return values if is_one else values * self.on_diagonal


@dataclass(frozen=True, eq=False)
class Mean:
    """What is wanted of the pairs' cross entropies: two weighted means over pairs and directions, given and soft.

    Attributes:
        alpha: weight of the given targets; the soft ones' is the rest.
        prior: one alpha for each pair, (b,), in place of that; None for none.
        factor: what the weighted sums are multiplied with.
    """

    alpha: float
    prior: Tensor | None
    factor: float


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

    def similarity(self, image_features: Tensor, text_features: Tensor, rows: slice) -> Similarity:
        """The given rows of the similarities, with the student's features (N, D) for a teacher that has none.

        One pair alone has no other: its own entry stays.
        """
        return Similarity(
            image_features if self.image_features is None else self.image_features,
            text_features if self.text_features is None else self.text_features,
            self.inv_epsilon,
            self.gamma_image,
            self.gamma_text,
            self.diagonal_penalty if len(text_features) > 1 else 0.0,
            rows,
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
