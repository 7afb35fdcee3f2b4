"""The freshness boost: a head start for new items, with a limit on the places that it may take.

    boost_i(t) = weight * 2^(-(t - added_i) / half_life)    for 0 <= t - added_i <= LIFE half-lives, else 0

is one more term of the linear score. `added_i` is when an item that nobody knew was first upserted; replacing it, or
removing it and adding it again, does not make it new again. A rebuild that absorbs an item does not end its boost.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue

LIFE = 5.0
"""Half-lives after which a boost, then 1/32 of the weight, is over."""
MAX_FRESH = 4096
"""Items that can be boosted at once, the newest: all of them are scored for every list."""


class FreshView(NamedTuple):
    """The boosted items at one moment: rows (f,), their boosts (f,), and the same by row."""

    rows: NDArray[np.int64]
    boosts: NDArray[np.float32]
    by_row: dict[int, float]


class Freshness:
    """`added_s` maps item ids to when they were added, in the order of time; it is shared with the catalogue log."""

    def __init__(self, weight: float, half_life_s: float, quota: float, added_s: Mapping[str, float]) -> None:
        self.weight = weight
        self.half_life_s = half_life_s
        self.quota = quota
        self._added_s = added_s

    def places(self, wanted: int) -> int:
        """How many places of a list items may take that are there only for their boost."""
        # The small number keeps 0.3 * 10 at 3.
        return int(self.quota * wanted + 1e-9)

    def view(self, catalogue: LiveCatalogue, time_s: float) -> FreshView | None:
        """The boosts at `time_s`; None when nothing is new."""
        by_row: dict[int, float] = {}
        for item_id, added_s in reversed(self._added_s.items()):  # type: ignore[call-overload]
            age_s = time_s - added_s
            if age_s > LIFE * self.half_life_s or len(by_row) == MAX_FRESH:
                break
            row = catalogue.row_of(item_id)
            if row is not None and age_s >= 0.0:
                by_row[row] = self.weight * 2.0 ** (-age_s / self.half_life_s)
        if not by_row:
            return None
        rows = np.fromiter(by_row, dtype=np.int64)
        return FreshView(rows, np.fromiter(by_row.values(), dtype=np.float32), by_row)
