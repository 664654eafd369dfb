"""The histogram of scores, as SVG that stretches, with ticks beside it that do not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from otter_losses.audit.report import PairTrust

BINS = 60
TAIL = 0.002
"""Share of the scores on either side that the outermost bins take in."""


@dataclass(frozen=True)
class Histogram:
    """Pairs per bin, and how many of them the estimate takes for wrong ones."""

    edges: NDArray[np.float64]
    pairs: NDArray[np.float64]
    wrong: NDArray[np.float64]

    @classmethod
    def of(cls, result: PairTrust) -> "Histogram":
        score, null = result.score.double().numpy(), result.null_score.double().numpy()
        low = min(np.quantile(score, TAIL), np.quantile(null, TAIL))
        high = max(np.quantile(score, 1 - TAIL), np.quantile(null, 1 - TAIL), low + 1e-6)
        edges = np.linspace(low, high, BINS + 1)
        pairs, null_pairs = (np.histogram(values.clip(low, high), edges)[0].astype(float) for values in (score, null))
        return cls(edges, pairs, null_pairs * (result.wrong_share * len(score) / len(null)))

    def svg(self, least: float, described: str) -> str:
        """Bars below and above the least score that is kept, and the wrong ones as a line."""
        top = 1.05 * max(self.pairs.max(), self.wrong.max())
        bars = "".join(
            f'<rect class="{"kept" if low >= least else "dropped"}" x="{10 * index + 0.5:g}" y="{300 * (1 - count / top):.1f}" '
            f'width="9" height="{300 * count / top:.1f}"><title>score {low:.2f} to {high:.2f}: {count:,.0f} pairs, '
            f"about {min(wrong, count):,.0f} of them wrong</title></rect>"
            for index, (low, high, count, wrong) in enumerate(
                zip(self.edges[:-1], self.edges[1:], self.pairs, self.wrong, strict=True)
            )
        )
        points = " ".join(f"{10 * index + 5},{300 * (1 - count / top):.1f}" for index, count in enumerate(self.wrong))
        ticks = "".join(
            f'<span style="left:{100 * (tick - self.edges[0]) / (self.edges[-1] - self.edges[0]):.1f}%">{tick:g}</span>'
            for tick in self._ticks()
        )
        return (
            f'<svg viewBox="0 0 {10 * BINS} 300" preserveAspectRatio="none" role="img" aria-label="{described}">'
            f'{bars}<polyline class="null" points="{points}"/></svg><div class="ticks" aria-hidden="true">{ticks}</div>'
        )

    def _ticks(self) -> list[float]:
        """Round numbers, three to eight of them."""
        width = self.edges[-1] - self.edges[0]
        power = 10.0 ** np.floor(np.log10(width / 3))
        step = next(power * factor for factor in (5, 2, 1) if width / (power * factor) >= 3)
        first, last = int(np.ceil(self.edges[0] / step)), int(np.floor(self.edges[-1] / step))
        return [float(step * number) for number in range(first, last + 1)]
