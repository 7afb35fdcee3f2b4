"""The rows with the most live users, kept up to date from event to event.

All counts decay alike, so the order of two rows changes only when one of them is counted anew: only rows that were
counted since the last look can come in. A look costs what they are, and not what the catalogue is; computing every
boost anew took 4.5 ms for 100,000 items, ten times a second (profile on a busy machine).
"""

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue, MovedRows
from heliotrope_server.live_view import TRENDING, LazyBoosts, LiveView, view_of
from heliotrope_server.popularity import LivePopularity

_BLOCK = 16_384


class Trending:
    """Belongs to one LiveCatalogue and the popularity that is bound to it."""

    def __init__(
        self, catalogue: LiveCatalogue, popularity: LivePopularity, counts: NDArray[np.float64] | None = None
    ) -> None:
        """`counts` (n,): those of LivePopularity.laid_out_for, before the popularity is bound to the catalogue."""
        self._catalogue = catalogue
        self._popularity = popularity
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        # No row outside has more; relative to the landmark of the counts, as they are.
        self._most_outside = 0.0
        self._gathered: tuple[object, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]] | None = None
        if counts is None:
            popularity.changed_rows = None
        else:
            self._choose(_best(counts), counts, 0.0)
            self._gather(catalogue.moved_rows())

    def view(self, time_s: float, weight: float) -> LiveView:
        """The live terms at a time, with gamma = `weight`; to be used before the next event is applied."""
        catalogue = self._catalogue
        counts = self._popularity.row_counts
        factor = self._popularity.decay(time_s)
        self._catch_up(counts)
        boosts = LazyBoosts(counts, factor, weight)
        outside = weight * float(np.log1p(self._most_outside * factor))
        return view_of(catalogue, boosts, *self._gather(catalogue.moved_rows()), outside)

    def _catch_up(self, counts: NDArray[np.float64]) -> None:
        changed = self._popularity.changed_rows
        if changed is not None and not changed:
            return
        self._popularity.changed_rows = set()
        if changed is None:
            self._choose(_best(counts), counts, 0.0)
            return
        counted = np.fromiter(changed, np.int64, len(changed))
        pool = np.union1d(self._rows, counted)
        self._choose(pool[counts[pool] > 0.0], counts, self._most_outside)
        if len(self._rows) and counts[self._rows].min() < self._most_outside:
            # Something was taken back: what stands outside may be larger.
            self._choose(_best(counts), counts, 0.0)

    def _choose(self, pool: NDArray[np.int64], counts: NDArray[np.float64], most_outside: float) -> None:
        """Keeps the best of `pool`, given that no row beside it has more than `most_outside`."""
        if len(pool) > TRENDING:
            order = np.argpartition(-counts[pool], TRENDING)
            most_outside = max(most_outside, float(counts[pool[order[TRENDING]]]))
            pool = np.sort(pool[order[:TRENDING]])
        if not np.array_equal(pool, self._rows):
            self._rows, self._gathered = pool, None
        self._most_outside = most_outside

    def _gather(self, moved: MovedRows) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """The trending rows but for the moved ones of the snapshot, with their vectors and biases."""
        if self._gathered is None or self._gathered[0] is not moved:
            rows = np.setdiff1d(self._rows, moved.base, assume_unique=True) if len(moved.base) else self._rows
            self._gathered = (moved, rows, *self._catalogue.served_rows(rows))
        return self._gathered[1:]


def _best(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that are counted, among them the TRENDING + 1 best: block by block, for the copies of all rows at once were
    40 bytes for each.
    """
    found = []
    for start in range(0, len(counts), _BLOCK):
        block = counts[start : start + _BLOCK]
        rows = np.flatnonzero(block)
        if len(rows) > TRENDING + 1:
            rows = rows[np.argpartition(-block[rows], TRENDING)[: TRENDING + 1]]
        found.append(start + rows)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
