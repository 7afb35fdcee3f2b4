"""What each event of a user adds to the scores of some items, in one compiled call: explanations ask for it.

With NumPy the same takes some 25 calls for each user, several times what the search takes.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search.library import ShareJobStruct, load


class PackedEvents(NamedTuple):
    """E events of one user. `columns` ends with the item number of each (int32) and its record: value (double), time in
    us (int64), and kind in the low 7 bits of a byte of which the highest marks events that may speak for the neighbours
    of their items, little-endian and packed. `ids` are the event ids, each behind a
    byte for its length.
    """

    size: int
    columns: bytearray
    ids: bytearray


class Strangers(NamedTuple):
    """Items (s,) by number that have no row, and their vectors (s, d)."""

    numbers: NDArray[np.int32]
    vectors: NDArray[np.float32]


class NeighbourTable(NamedTuple):
    """Neighbours of each row of the snapshot (n, c), -1 for none, with their strengths (n, c). The `newest` marked
    events speak for those of their items, with `weight`.
    """

    rows: NDArray[np.int32]
    strengths: NDArray[np.float32]
    newest: int
    weight: float


class Spoken(NamedTuple):
    """What the events at some places (s,), ascending, add to the scores of k items beside taste: (s, k)."""

    places: NDArray[np.int64]
    shares: NDArray[np.float64]


class Shares(NamedTuple):
    """For k items: the m events with the largest shares by place, largest first by absolute value, and the shares,
    (k, m); what the other events add, the prior, and the folded sum, each (k,). `starts` are where the ids of the
    events begin, by place, until the next call. `adding` events add anything; of `unknown` ones there was no vector.
    """

    places: NDArray[np.int64]
    shares: NDArray[np.float64]
    others: NDArray[np.float64]
    prior: NDArray[np.float64]
    folded: NDArray[np.float64]
    starts: NDArray[np.int64]
    adding: int
    unknown: int


NUMBER_BYTES, RECORD_BYTES, KINDS = 4, 17, 0x80


class EventShares:
    """Over the vectors (n, d) of one snapshot. Not for two threads at once."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        half_lives_s: Sequence[float],
        kappas: Sequence[float],
        weights: NDArray[np.float64],
        centers: NDArray[np.float64],
        limit: float,
        table: NeighbourTable | None = None,
    ) -> None:
        """An event of a kind (index into `weights` and `centers`) and value has the gain weight * (value - center),
        bounded by `limit`. Raises OSError where there is no kernel.
        """
        self._library = load()
        self._by_kind = np.zeros((2, KINDS))
        self._by_kind[:, : len(weights)] = weights, centers
        self._rates = np.array([half_lives_s, kappas], dtype=np.float64)
        self._vectors = vectors
        job = self._job = ShareJobStruct(d=vectors.shape[1], horizons=len(half_lives_s), limit=limit)
        job.vectors = _address(vectors)
        job.half_lives, job.kappas = _address(self._rates), _address(self._rates[1])
        job.weights, job.centers = _address(self._by_kind), _address(self._by_kind[1])
        self._table, self._newest = table, 0
        if table is not None:
            self._newest = table.newest
            job.neighbours, job.neighbour_weight = table.rows.shape[1], table.weight
            job.neighbour_rows, job.strengths = _address(table.rows), _address(table.strengths)
        # Written into for every user: finding the address of an array takes as long as many of them take in C.
        self._totals = np.empty(len(half_lives_s))
        job.totals = _address(self._totals)
        self._rows: NDArray[np.int32] | None = None
        self._prior: NDArray[np.float32] | None = None
        self._reference = ctypes.byref(job)
        self._events = self._items = self._cells = 0

    def of(
        self,
        events: PackedEvents,
        rows: NDArray[np.int32],
        aims: NDArray[np.float32],
        read_s: float,
        totals: NDArray[np.float64] | Sequence[float],
        prior: NDArray[np.float32],
        folded: NDArray[np.float64] | None,
        most: int,
        *,
        strangers: Strangers | None = None,
        spoken: Spoken | None = None,
        targets: NDArray[np.int64] | None = None,
    ) -> Shares | None:
        """The `most` largest shares for each of k items.

        `rows` are the rows of items by number, -1 for none; `aims` (k, H d) are A_h x_i; `totals` (H,) kappa + mass;
        `prior` (d,) and `folded` (H, d) what is known beside the events, as of `read_s`. With `targets` (k,), the rows
        by which the items are named as neighbours (-2: by none), marked events speak for them; otherwise `spoken` says
        what is said. None: times are equal, so that they do not tell which of the marked events are the newest.
        """
        job, items = self._job, len(aims)
        most = min(most, events.size)
        if events.size > self._events or items > self._items or items * most > self._cells:
            self._make_room(events.size, items, items * most)
        job.events, job.items, job.named, job.read_s = events.size, items, most, read_s
        if events.size:
            start = len(events.columns) - events.size * (NUMBER_BYTES + RECORD_BYTES)
            columns = ctypes.addressof(ctypes.c_char.from_buffer(events.columns)) + start
            job.numbers, job.records = columns, columns + events.size * NUMBER_BYTES
            job.ids = ctypes.addressof(ctypes.c_char.from_buffer(events.ids))
        if rows is not self._rows:
            self._rows, job.rows = rows, _address(rows)
        if prior is not self._prior:
            self._prior, job.prior = prior, _address(prior)
        job.aims = _address(aims)
        self._totals[:] = totals
        job.folded = None if folded is None else _address(folded)
        job.strangers = 0
        if strangers is not None:
            job.strangers = len(strangers.numbers)
            job.stranger_numbers, job.stranger_vectors = _address(strangers.numbers), _address(strangers.vectors)
        job.speakers = 0
        if targets is not None:
            job.speakers, job.targets = self._newest, _address(targets)
        job.spoken = 0
        if spoken is not None:
            job.spoken = len(spoken.places)
            job.spoken_places, job.spoken_shares = _address(spoken.places), _address(spoken.shares)
        self._library.heliotrope_event_shares(self._reference)
        if job.tied:
            return None
        named: int = job.named
        sums = self._sums[:, :items].copy()
        return Shares(
            self._places[: items * named].reshape(items, named).copy(),
            self._shares[: items * named].reshape(items, named).copy(),
            sums[0],
            sums[1],
            sums[2],
            self._starts,
            job.adding,
            job.unknown,
        )

    def _make_room(self, events: int, items: int, cells: int) -> None:
        job = self._job
        self._events, self._items = max(events, 2 * self._events, 64), max(items, self._items, 64)
        self._cells = max(cells, self._cells, 1024)
        self._scales, self._starts = np.empty(self._events * job.horizons), np.empty(self._events, dtype=np.int64)
        self._places, self._shares = np.empty(self._cells, dtype=np.int64), np.empty(self._cells)
        self._sums = np.empty((3, self._items))
        self._speaking, self._said_at = (np.empty(size, dtype=np.int64) for size in (self._newest, self._events))
        self._said = np.empty(self._newest * self._items)
        job.speaking, job.said_at, job.said = _address(self._speaking), _address(self._said_at), _address(self._said)
        job.scales, job.starts = _address(self._scales), _address(self._starts)
        job.places, job.shares = _address(self._places), _address(self._shares)
        job.others, job.by_prior, job.by_folded = (_address(one) for one in self._sums)


def _address(array: NDArray[Any]) -> int:
    """Where a contiguous array begins."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of the strides {array.strides} is not contiguous")
    address: int = array.__array_interface__["data"][0]
    return address
