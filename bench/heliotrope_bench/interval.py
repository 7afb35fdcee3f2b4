"""Percentile bootstrap over users, alone and in pairs."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SAMPLES = 1_000
LEVEL = (2.5, 97.5)


class Bootstrap:
    """Draws users with replacement, always the same draws for the same users, so that models can be paired.

    Targets of one user are drawn together (a cluster bootstrap): they are not independent.
    """

    def __init__(self, users: NDArray[np.int64], *, samples: int = SAMPLES, seed: int = 0) -> None:
        """`users` (targets,) says whose each target is."""
        self._place = np.unique(users, return_inverse=True)[1]
        self._count = int(self._place.max()) + 1 if len(users) else 0
        self._samples = samples
        self._seed = seed

    def interval(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Low and high ends (measures,) of the 95 % intervals of the means of `values` (targets, measures)."""
        if not self._count:
            nothing = np.zeros(values.shape[1])
            return nothing, nothing
        sums = np.stack(
            [np.bincount(self._place, weights=column, minlength=self._count) for column in values.T], axis=1
        )
        targets = np.bincount(self._place, minlength=self._count)
        means = (self._weights @ sums) / (self._weights @ targets)[:, None]
        low, high = np.percentile(means, LEVEL, axis=0)
        return low, high

    def difference(
        self, ours: NDArray[np.float64], theirs: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean, low and high (measures,) of `ours - theirs` (targets, measures), the same users drawn for both."""
        apart = ours - theirs
        return apart.mean(axis=0), *self.interval(apart)

    def ratio(
        self, ours: NDArray[np.float64], theirs: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Ratio, low and high (measures,) of the mean of `ours` over that of `theirs` (targets, measures), the same
        users drawn for both. Where `theirs` are all zero it is not a number.
        """
        drawn = self._weights[:, self._place]
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = np.percentile((drawn @ ours) / (drawn @ theirs), LEVEL, axis=0)
            return ours.mean(axis=0) / theirs.mean(axis=0), low, high

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """(samples, users): how often each user is drawn."""
        generator = np.random.default_rng(self._seed)
        drawn = generator.multinomial(self._count, np.full(self._count, 1 / self._count), size=self._samples)
        return drawn.astype(np.float64)


def verdict(low: float, high: float) -> str:
    """What an interval of ours minus theirs says."""
    if low > 0.0:
        return "better"
    return "worse" if high < 0.0 else "even"
