"""Item to item: what people who turn to one item turn to as well.

Vectors of a few dozen dimensions say what kind of item a user likes; they cannot say that this very book is read by
those who read that one. So each item e also names a few others i with a strength s_ei, and a user's score of i gains

    weight * sum over e of s_ei,    e over the newest items that the user likes.

The strengths of one target i are the ridge regression of "took i" on "took e" over all users, with the diagonal left
out: EASE (Steck, 2019), but on the candidates that occur together with i most often for their frequency, as SLIM's
feature selection does (Ning and Karypis, 2011), so that the cost grows with the number of items and not with its cube.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.events import EventTable

# Imported where it is used: a server that reads a table needs none of it, and would start later.
if TYPE_CHECKING:
    import scipy.sparse as sp

KEPT = 16
"""k: items that one item names at most."""
CANDIDATES = 64
"""Items that a target is regressed on at most."""
HISTORY = 128
"""Newest liked items of a user that speak for others."""
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""What is tried on held-out events; 0: no neighbours."""
_BLOCK = 1_000
_LONGEST = 1_000
"""Newest items of a user that are learned from: one user with all items would make every pair occur."""


@dataclass(frozen=True)
class Neighbours:
    """The table for n items: row e names items and how strongly e speaks for them."""

    rows: NDArray[np.int32]
    """(n, k) item rows; -1 where there are fewer."""
    strengths: NDArray[np.float32]
    """(n, k), positive; 0 where there are fewer."""

    def matrix(self) -> sp.csr_matrix:
        """(n, n): strengths by item and neighbour."""
        import scipy.sparse as sp

        n = len(self.rows)
        named = self.rows >= 0
        sources = np.broadcast_to(np.arange(n)[:, None], self.rows.shape)[named]
        return sp.csr_matrix((self.strengths[named], (sources, self.rows[named])), shape=(n, n))

    def renumbered(self, places: NDArray[np.int64], row_of: NDArray[np.int64]) -> Neighbours:
        """The table of another catalogue: its item i is item `places[i]` of this one (-1: none), and item j of this one
        is row `row_of[j]` there (-1: gone).
        """
        known = places >= 0
        rows = np.full((len(places), self.rows.shape[1]), -1, dtype=np.int32)
        strengths = np.zeros(rows.shape, dtype=np.float32)
        old = self.rows[places[known]]
        rows[known] = np.where(old >= 0, row_of[old], -1)
        strengths[known] = np.where(rows[known] >= 0, self.strengths[places[known]], 0.0)
        return Neighbours(rows, strengths)


def fit_neighbours(
    events: EventTable, n: int, *, ridge: float, progress: Callable[[int], None] = lambda _: None
) -> Neighbours:
    """Learns the table of n items from events that speak for an item, one each user and item; `ridge` is in users.

    Costs about a millisecond for each item with events.
    """
    taken = _taken(events, n)
    by_item = taken.tocsc()
    counts = np.diff(by_item.indptr)
    sources, targets, strengths = [], [], []
    items = np.flatnonzero(counts)
    for start in range(0, len(items), _BLOCK):
        block = items[start : start + _BLOCK]
        together = (by_item[:, block].T @ taken).tocsr()
        for place, target in enumerate(block.tolist()):
            part = slice(together.indptr[place], together.indptr[place + 1])
            others, common = together.indices[part], together.data[part]
            others, common = others[others != target], common[others != target]
            if len(others) > CANDIDATES:
                # What one regression on this item alone would make of it.
                worth = common / np.sqrt(counts[others] + ridge)
                best = np.argpartition(-worth, CANDIDATES)[:CANDIDATES]
                others, common = others[best], common[best]
            if not len(others):
                continue
            columns = by_item[:, others]
            gram = (columns.T @ columns).toarray().astype(np.float64)
            gram[np.diag_indices(len(others))] += ridge
            sources.append(others)
            targets.append(np.full(len(others), target))
            strengths.append(np.linalg.solve(gram, common.astype(np.float64)))
        progress(len(block))
    if not sources:
        return Neighbours(np.full((n, KEPT), -1, np.int32), np.zeros((n, KEPT), np.float32))
    return _strongest(np.concatenate(sources), np.concatenate(targets), np.concatenate(strengths), n)


def liked_items(
    user: NDArray[np.int64], row: NDArray[np.int64], time: NDArray[np.float64], users: int, n: int, limit: int
) -> sp.csr_matrix:
    """(users, n) with a 1 for each of the newest `limit` distinct items of a user; equal times: the higher row first.

    `user`, `row` and `time` (E,) are of events that speak for their item.
    """
    import scipy.sparse as sp

    order = np.lexsort((row, time, user))[::-1]
    pairs = user[order] * n + row[order]
    newest = np.sort(np.unique(pairs, return_index=True)[1])
    who, what = user[order][newest], row[order][newest]
    starts = np.flatnonzero(np.r_[True, who[1:] != who[:-1]]) if len(who) else np.empty(0, np.int64)
    place = np.arange(len(who)) - np.repeat(starts, np.diff(np.r_[starts, len(who)]))
    kept = place < limit
    return sp.csr_matrix((np.ones(int(kept.sum()), np.float32), (who[kept], what[kept])), shape=(users, n))


def _taken(events: EventTable, n: int) -> sp.csr_matrix:
    return liked_items(events.user, events.row, events.time, len(events.user_ids), n, _LONGEST)


def _strongest(
    sources: NDArray[np.int64], targets: NDArray[np.int64], strengths: NDArray[np.float64], n: int
) -> Neighbours:
    """The KEPT strongest targets of each source; what speaks against an item is left out."""
    order = np.lexsort((targets, -strengths, sources))
    order = order[strengths[order] > 0.0]
    source, place = sources[order], np.arange(len(order))
    starts = np.searchsorted(source, np.arange(n))
    place = place - starts[source]
    kept = place < KEPT
    rows, table = np.full((n, KEPT), -1, np.int32), np.zeros((n, KEPT), np.float32)
    rows[source[kept], place[kept]] = targets[order][kept]
    table[source[kept], place[kept]] = strengths[order][kept]
    return Neighbours(rows, table)
