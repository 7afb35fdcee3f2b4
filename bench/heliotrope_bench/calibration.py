"""How far served probabilities are from what happens: the expected calibration error (Naeini et al., 2015).

A served probability is that of a fair duel: how likely the user takes this item next, when the choice is between it
and one drawn evenly from the items they have not seen. So the impressions to check it on are the target with one half
of the weight and evenly drawn unseen items with the other half.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 15
DRAWN = 20
MAX_TARGETS = 1_000


@dataclass
class Duels:
    """Collects impressions."""

    probabilities: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(
        self,
        rows: NDArray[np.int64],
        probabilities: NDArray[np.float64],
        target: int,
        generator: np.random.Generator,
    ) -> None:
        """One target: `rows` and `probabilities` (n,) are all unseen items and what was served for them."""
        own = probabilities[rows == target]
        others = probabilities[rows != target]
        if not len(own) or not len(others):
            return
        drawn = others[generator.integers(len(others), size=DRAWN)]
        self.probabilities += [float(own[0]), *drawn.tolist()]
        self.labels += [1.0] + [0.0] * DRAWN
        self.weights += [0.5] + [0.5 / DRAWN] * DRAWN

    def figures(self) -> dict[str, float]:
        """The error over bins of equal width and over bins of equal weight, and the impressions."""
        probabilities, labels, weights = (np.array(part) for part in (self.probabilities, self.labels, self.weights))
        return {
            "ece": calibration_error(probabilities, labels, weights),
            "ece_equal_mass": calibration_error(probabilities, labels, weights, equal_mass=True),
            "impressions": len(probabilities),
        }


def calibration_error(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    equal_mass: bool = False,
) -> float:
    """sum over bins of (weight of the bin) * abs(mean probability - mean label), all of shape (n,)."""
    if not len(probabilities):
        return 0.0
    if equal_mass:
        order = np.argsort(probabilities, kind="stable")
        before = np.empty(len(order))
        before[order] = np.cumsum(weights[order]) - weights[order] / 2
        place = before / weights.sum()
    else:
        place = probabilities
    bins = np.minimum((place * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, weights * (probabilities - labels), minlength=BINS)
    return float(np.abs(gap).sum() / weights.sum())
