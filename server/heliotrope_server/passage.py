"""How the folded events of a user move from the item space of one snapshot to that of another.

A folded sum is known to be `s = sum g_e 2^((t_e - L)/half_life) x_e` over events that cannot be told apart any more.
What a profile still has of them is which items they were on, and when each was last liked. So the part of `s` along

    z = sum over these items of 2^((t_i - L)/half_life) x_i

is taken to be `g z`, with the one gain g that leaves the shortest rest, and is worked out anew with the items' new
vectors and the new half-life. Only the rest `s - g z` goes through a linear map, fitted over all shared items.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.interest import InterestSums

NAMED = 512
"""Items of a profile, the last liked ones, that are looked up one by one; older ones are in the rest. Two look-ups take
microseconds, and the next request of the user waits for them all."""


class Space(Protocol):
    """The item vectors (n, d) of a snapshot."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...

    def row_of(self, item_id: str) -> int | None: ...


@dataclass(frozen=True)
class Passage:
    """From the space `old` to `new`. `matrix` (d_old, d_new) is the map for what no item explains; the half-lives are
    those by which the old sums decay, and the new ones will. Without `old` all goes through the map.
    """

    old: Space | None
    new: Space
    matrix: NDArray[np.float32]
    old_half_lives_s: tuple[float, ...]
    new_half_lives_s: tuple[float, ...]

    def onward(self, after: "Passage") -> "Passage":
        """This passage and another behind it, in one."""
        return replace(after, old=self.old, matrix=self.matrix @ after.matrix, old_half_lives_s=self.old_half_lives_s)

    def carried_over(self, folded: InterestSums, liked_us: Mapping[str, int], newest_s: float) -> InterestSums:
        """Folded sums in the new space. `liked_us` has when each folded item was last liked, in us, 0 for never;
        `newest_s` is the time of the newest folded event. A horizon takes the old one of the nearest half-life.
        """
        moved = folded.copy()
        # From here on both half-lives give the newest event a weight of 1: the old landmark may lie hundreds of the old
        # half-lives back, and the factor between is not one of the new.
        moved.move_landmark(newest_s, self.old_half_lives_s)
        ages_s, old_vectors, new_vectors = self._named(liked_us, newest_s)
        new = InterestSums(len(self.new_half_lives_s), new_vectors.shape[1], newest_s)
        for horizon, half_life_s in enumerate(self.new_half_lives_s):
            nearest = _nearest(half_life_s, self.old_half_lives_s)
            was = np.exp2(-ages_s / self.old_half_lives_s[nearest])
            will = np.exp2(-ages_s / half_life_s)
            # What the named items say of how old the folded events are, the rest is taken to be as well.
            stretch = will.sum() / was.sum() if was.sum() > 0.0 else 1.0
            named = was @ old_vectors
            length = float(named @ named)
            gain = float(moved.sums[nearest] @ named) / length if length > 0.0 else 0.0
            rest = moved.sums[nearest] - gain * named
            new.sums[horizon] = gain * (will @ new_vectors) + stretch * (rest @ self.matrix)
            new.masses[horizon] = stretch * moved.masses[nearest]
        return new

    def _named(
        self, liked_us: Mapping[str, int], newest_s: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Ages (k,) in seconds before `newest_s` of liked items that both spaces hold, and both vectors of each."""
        if self.old is None:
            return np.zeros(0), np.zeros((0, len(self.matrix))), np.zeros((0, self.matrix.shape[1]))
        ages, old_rows, new_rows = [], [], []
        for item_id in heapq.nlargest(NAMED, liked_us, key=liked_us.__getitem__):
            if not liked_us[item_id]:
                break
            old_row, new_row = self.old.row_of(item_id), self.new.row_of(item_id)
            if old_row is not None and new_row is not None:
                ages.append(newest_s - liked_us[item_id] / 1e6)
                old_rows.append(old_row)
                new_rows.append(new_row)
        old, new = (
            space.vectors[np.array(rows, np.int64)].astype(np.float64)
            for space, rows in ((self.old, old_rows), (self.new, new_rows))
        )
        return np.array(ages), old, new


def fitted_map(
    old: NDArray[np.float32], new: NDArray[np.float32], counts: NDArray[np.floating]
) -> tuple[NDArray[np.float32], float] | None:
    """The map (d_old, d_new) from old to new vectors of n shared items by least squares, and its relative error.

    An item weighs by its events, `counts` (n,), and one more: sums hold those that people take. None where there are
    fewer items than old dimensions, which would not determine a map.
    """
    if len(old) < old.shape[1]:
        return None
    weights = np.sqrt(1.0 + counts)[:, None].astype(np.float64)
    weighted_old, weighted_new = old * weights, new * weights
    # By the normal equations: a fifth of the work, and float64 bears the square of the condition.
    matrix, *_ = np.linalg.lstsq(weighted_old.T @ weighted_old, weighted_old.T @ weighted_new, rcond=None)
    error = float(np.linalg.norm(weighted_old @ matrix - weighted_new))
    return matrix.astype(np.float32), error / max(float(np.linalg.norm(weighted_new)), 1e-12)


def _nearest(half_life_s: float, among: tuple[float, ...]) -> int:
    """Place of the half-life that differs by the smallest factor."""
    return int(np.argmin(np.abs(np.log(np.array(among) / half_life_s))))
