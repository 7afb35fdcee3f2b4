"""What the items that a user likes say of others, by the snapshot's table of neighbours (see `Parameters`)."""

from collections import OrderedDict
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

    def of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the scores of some rows (m,) gain, (m,)."""
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[places] == rows, self.gains[places], np.float32(0.0))


class SuggestionCache:
    """Suggestions of one catalogue by user, until user or catalogue change. Belongs to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self._sums = np.zeros(catalogue.base_count, dtype=np.float32)
        self._kept: OrderedDict[str, tuple[tuple[int, int], Suggestions | None]] = OrderedDict()

    def of(self, profile: Profile) -> Suggestions | None:
        """None where nothing is suggested."""
        key = (self._catalogue.revision, profile.lsn)
        kept = self._kept.get(profile.user_id)
        if kept is not None and kept[0] == key:
            self._kept.move_to_end(profile.user_id)
            return kept[1]
        found = suggestions(profile, self._catalogue, self._sums)
        self._kept[profile.user_id] = (key, found)
        if len(self._kept) > CACHED:
            self._kept.popitem(last=False)
        return found

    def forget(self, user_id: str) -> None:
        """Drops what is kept of a user."""
        self._kept.pop(user_id, None)


def speaking_items(profile: Profile, limit: int) -> list[str]:
    """The newest liked items, newest first."""
    counted = profile.counted
    newest_first = sorted(zip(counted.values(), counted.keys(), strict=True), reverse=True)
    return [item_id for _, item_id in newest_first[:limit]]


def suggestions(
    profile: Profile, catalogue: LiveCatalogue, sums: NDArray[np.float32] | None = None
) -> Suggestions | None:
    """weight * sum over the user's newest liked items e of s_ei, for all items i where it is not 0.

    `sums` (n,) of zeros is worked in and left as it was: allocating it costs more than all the rest.
    """
    neighbourhood, table = catalogue.parameters.neighbours, catalogue.neighbours
    if neighbourhood is None or table is None:
        return None
    row_of = catalogue.snapshot.row_of
    speaking = [row for item in speaking_items(profile, neighbourhood.items) if (row := row_of(item)) is not None]
    if not speaking:
        return None
    named, strengths = table.rows[speaking].ravel(), table.strengths[speaking].ravel()
    if named.min(initial=0) < 0:
        named, strengths = named[named >= 0], strengths[named >= 0]
    if not len(named):
        return None
    sums = np.zeros(catalogue.base_count, dtype=np.float32) if sums is None else sums
    np.add.at(sums, named, strengths)
    # numpy.unique takes ten times as long as a sort.
    ordered = np.sort(named)
    rows = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])].astype(np.int64)
    gains = np.float32(neighbourhood.weight) * sums[rows]
    sums[rows] = 0.0
    if catalogue.alive_count < catalogue.size:
        rows, gains = _living(rows, gains, catalogue)
    return Suggestions(rows, gains) if len(rows) else None


def said_of(profile: Profile, catalogue: LiveCatalogue, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """What each liked item adds to the scores of some rows (k,), by the item; items that add nothing are left out."""
    neighbourhood, table = catalogue.parameters.neighbours, catalogue.neighbours
    if neighbourhood is None or table is None:
        return {}
    row_of = catalogue.snapshot.row_of
    liked = [(item, row) for item in speaking_items(profile, neighbourhood.items) if (row := row_of(item)) is not None]
    if not liked:
        return {}
    sources = [row for _, row in liked]
    targets = named_rows(catalogue, rows)
    named = table.rows[sources][:, :, None] == targets  # (liked, neighbours, k)
    speak = np.flatnonzero(named.any(axis=(1, 2))).tolist()
    strengths = table.strengths[sources].astype(np.float64)
    return {liked[one][0]: neighbourhood.weight * (strengths[one] @ named[one]) for one in speak}


def named_rows(catalogue: LiveCatalogue, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows by which items at some rows (k,) are named as neighbours: a replaced item by its row in the snapshot, -2
    for one that the snapshot does not hold.
    """
    fresh = np.flatnonzero(rows >= catalogue.base_count)
    if not len(fresh):
        return rows
    targets = rows.copy()
    for place in fresh.tolist():
        row = catalogue.snapshot.row_of(catalogue.item_ids[rows[place]])
        targets[place] = -2 if row is None else row
    return targets


def _living(
    rows: NDArray[np.int64], gains: NDArray[np.float32], catalogue: LiveCatalogue
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """An item that was replaced is suggested at its new row, a removed one no longer."""
    now = rows.copy()
    for place in np.flatnonzero(~catalogue.alive[rows]).tolist():
        row = catalogue.rows.get(catalogue.item_ids[rows[place]])
        now[place] = -1 if row is None else row
    order = np.argsort(now)
    order = order[now[order] >= 0]
    return now[order], gains[order]
