"""What the items that a user likes say of others, by the snapshot's table of neighbours (see `Parameters`)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.profile import Profile

CACHED = 2_000
"""Users whose suggestions are kept: at most 20 KB each."""


class Suggestions(NamedTuple):
    """Rows (c,), ascending, and what their scores gain (c,)."""

    rows: NDArray[np.int64]
    gains: NDArray[np.float32]

    def add_to(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Adds the gains to the scores (m,) of some rows (m,), in place; returns which suggestions were met (c,).

        A row that scores -inf is no candidate and meets nothing.
        """
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        met = np.flatnonzero((self.rows[places] == rows) & (scores > -np.inf))
        scores[met] += self.gains[places[met]]
        found = np.zeros(len(self.rows), dtype=np.bool_)
        found[places[met]] = True
        return found


class SuggestionCache:
    """Suggestions by user, until the user or the catalogue changes. Belongs to the event loop of its shard."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[tuple[int, int, int], Suggestions | None]] = OrderedDict()

    def of(self, profile: Profile, catalogue: LiveCatalogue) -> Suggestions | None:
        """None where nothing is suggested."""
        key = (catalogue.generation, catalogue.revision, profile.lsn)
        kept = self._kept.get(profile.user_id)
        if kept is not None and kept[0] == key:
            self._kept.move_to_end(profile.user_id)
            return kept[1]
        found = suggestions(profile, catalogue)
        self._kept[profile.user_id] = (key, found)
        if len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return found


def speaking_items(profile: Profile, limit: int) -> list[str]:
    """The newest liked items, newest first."""
    liked = profile.counted
    ordered = sorted(liked.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)
    return [item_id for item_id, _ in ordered[:limit]]


def suggestions(profile: Profile, catalogue: LiveCatalogue) -> Suggestions | None:
    """weight * sum over the user's newest liked items e of s_ei, for all items i where it is not 0."""
    neighbourhood, table = catalogue.parameters.neighbours, catalogue.snapshot.neighbours
    if neighbourhood is None or table is None:
        return None
    row_of = catalogue.snapshot.row_of
    speaking = [row for item in speaking_items(profile, neighbourhood.items) if (row := row_of(item)) is not None]
    if not speaking:
        return None
    named, places = np.unique(table.rows[speaking].ravel().astype(np.int64), return_inverse=True)
    sums = np.bincount(places, table.strengths[speaking].ravel(), minlength=len(named))
    kept = (named >= 0) & (sums > 0.0)
    rows, gains = named[kept], (neighbourhood.weight * sums[kept]).astype(np.float32)
    if catalogue.alive_count < catalogue.size:
        rows, gains = _living(rows, gains, catalogue)
    return Suggestions(rows, gains) if len(rows) else None


def said_of(
    profile: Profile, catalogue: LiveCatalogue, rows: Sequence[int]
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """What each liked item adds to the scores of some rows (k,), by the item and the time in us of the newest positive
    event on it; items that add nothing are left out.
    """
    neighbourhood, table = catalogue.parameters.neighbours, catalogue.snapshot.neighbours
    said: dict[tuple[str, int], NDArray[np.float64]] = {}
    if neighbourhood is None or table is None:
        return said
    row_of = catalogue.snapshot.row_of
    targets = np.array([-2 if (row := row_of(catalogue.item_ids[at])) is None else row for at in rows])
    for item_id in speaking_items(profile, neighbourhood.items):
        source = row_of(item_id)
        if source is None:
            continue
        named = table.rows[source][:, None] == targets  # (neighbours, k)
        if named.any():
            shares = neighbourhood.weight * (table.strengths[source].astype(np.float64) @ named)
            said[item_id, profile.counted[item_id]] = shares
    return said


def _living(
    rows: NDArray[np.int64], gains: NDArray[np.float32], catalogue: LiveCatalogue
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """An item that was replaced is suggested at its new row, a removed one no longer."""
    now = rows.copy()
    for place in np.flatnonzero(~catalogue.alive[rows]).tolist():
        now[place] = catalogue.rows.get(catalogue.item_ids[rows[place]], -1)
    order = np.argsort(now)
    order = order[now[order] >= 0]
    return now[order], gains[order]
