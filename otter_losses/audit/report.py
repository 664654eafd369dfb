"""What an audit of pairs found."""

from dataclasses import dataclass

from torch import Tensor

from otter_losses.checks import check_number


@dataclass(frozen=True, eq=False)
class PairTrust:
    """How far each given pair of image and caption is to be believed. All tensors are on the CPU; rows are the pairs' rows.

    Attributes:
        trust: (N,) float32 in [0, 1], one minus the local false discovery rate. This is the estimated probability that a pair
            with this score belongs together. It never falls where the score rises.
        score: (N,) float32, how well a pair agrees with its neighbours, in standard deviations of mismatched pairs from their
            mean. Larger is better.
        wrong_share: the estimated share of wrong pairs, in [0, 1].
        wrong_share_interval: the low and high end of this share in 95 % of bootstrap samples of the pairs. It covers the luck
            of the sample only, and not crowds of pairs that share one image or one caption. Wrong captions from the right topic
            look right, so among them the share is underestimated. Right pairs that nothing resembles look wrong, and raise it.
        best_text: (N,) int64, the row of the caption that suits image i best, other than its own, among the captions of its
            neighbours.
        best_image: (N,) int64, the row of the image that suits caption i best, other than its own, among the images of its
            neighbours. Either is -1 where an index (``search="faiss"``) found no neighbour.
        duplicates: (M, 2) int64, rows i < j that are nearly the same in image and in text: one pair twice. Where a pair has
            more than k copies, only some are listed.
        null_score: (P,) float32, scores of images with random captions of other rows. They show what wrong pairs look like.
        common_space: whether the cosine of an image and its caption is part of the score.
    """

    trust: Tensor
    score: Tensor
    wrong_share: float
    wrong_share_interval: tuple[float, float]
    best_text: Tensor
    best_image: Tensor
    duplicates: Tensor
    null_score: Tensor
    common_space: bool

    def alpha(self, low: float = 0.05, high: float = 0.5) -> Tensor:
        """``low + (high - low) * trust``, (N,), as the `alpha` of a loss, so that pairs in doubt lean on the teacher.

        Raises:
            ValueError: unless ``0 <= low <= high <= 1``.
        """
        check_number("low", low, low=0.0, high=1.0)
        check_number("high", high, low=low, high=1.0)
        return low + (high - low) * self.trust
