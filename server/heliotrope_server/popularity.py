"""Live popularity: the decayed number of users with a recent positive event on every item.

    count_i(t) = sum over users u of 2^(-(t - t_ui) / T),    t_ui: u's newest positive event on item i

kept by forward decay like the interest sums. A user counts at most once, however many events they send: an event moves
them from their older time to the newer one. Each shard counts its own users and hears of the others' counts from its
peers; the served count is the sum.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.interest import MAX_EXPONENT, power_of_two

MOST_MOVED = 4_096
"""Moves of single users that wait to be laid out together."""
MOST_CHANGED = 0.1
"""Where a larger share of the rows has changed, and more than MOST_MOVED, nobody remembers which: all are looked at
again. The set of 100,000 rows took 7 MB on a shard that took events and was asked nothing."""
MAX_BACK = 32.0
_LOOKED_UP = 1_024
"""Ids that are looked up between two pauses."""


class LivePopularity:
    """Counts by item id, with arrays by catalogue row for scoring. Belongs to the event loop of its shard.

    Item ids outlive a snapshot, rows do not: `own` is the truth, the array is rebuilt when the catalogue changes.
    """

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.landmark_s = 0.0
        self.version = 0
        self.own: dict[str, float] = {}
        self.changed_at: dict[str, int] = {}
        self._peers: dict[int, dict[str, float]] = {}
        self._counts: NDArray[np.float64] = np.zeros(0)
        # Rows counted anew since whoever reads them took them; None: any row may be.
        self.changed_rows: set[int] | None = None
        # What events have moved since the array was last read: rows, and by how much.
        self._moved_rows: list[int] = []
        self._moved_by: list[float] = []
        # Ids counted anew since `begin_layout`; None: nothing is laid out, or all of it is out of date.
        self._recounted: set[str] | None = None

    def add(self, item_id: str, row: int | None, time_s: float) -> None:
        """Counts one user whose newest positive event on the item is at `time_s`."""
        self.move(item_id, row, None, time_s)

    def move(self, item_id: str, row: int | None, from_s: float | None, to_s: float | None) -> None:
        """Counts one user by another event than before. `from_s` None: not counted before; `to_s` None: no longer."""
        if from_s == to_s:
            return
        if to_s is not None and to_s - self.landmark_s > MAX_EXPONENT * self.half_life_s:
            self.move_landmark(to_s)
        weight = self._weight(to_s)
        if from_s is not None:
            weight -= self._weight(from_s)
        self.own[item_id] = max(0.0, self.own.get(item_id, 0.0) + weight)
        self.version += 1
        self.changed_at[item_id] = self.version
        if self._recounted is not None:
            self._recounted.add(item_id)
        if row is not None:
            self._moved_rows.append(row)
            self._moved_by.append(weight)
            if len(self._moved_rows) >= MOST_MOVED:
                self._laid_out()

    def _laid_out(self) -> NDArray[np.float64]:
        """The array, up to date: one event at a time costs more than all else that an event does here."""
        if self._moved_rows:
            rows = np.array(self._moved_rows)
            np.add.at(self._counts, rows, self._moved_by)
            self._counts[rows] = np.maximum(self._counts[rows], 0.0)
            if self.changed_rows is not None:
                self.changed_rows.update(self._moved_rows)
                if len(self.changed_rows) > max(MOST_MOVED, MOST_CHANGED * len(self._counts)):
                    self.changed_rows = None
            self._moved_rows, self._moved_by = [], []
        return self._counts

    def _weight(self, time_s: float | None) -> float:
        return 0.0 if time_s is None else power_of_two((time_s - self.landmark_s) / self.half_life_s)

    def move_landmark(self, landmark_s: float) -> None:
        """Restates all counts relative to another moment; every item counts as changed."""
        factor = power_of_two((self.landmark_s - landmark_s) / self.half_life_s)
        self.version += 1
        self.own = {item_id: count * factor for item_id, count in self.own.items()}
        self.changed_at = dict.fromkeys(self.own, self.version)
        self._peers = {
            peer: {item_id: count * factor for item_id, count in counts.items()} for peer, counts in self._peers.items()
        }
        self._counts = self._laid_out() * factor
        self.changed_rows = self._recounted = None
        self.landmark_s = landmark_s

    def change_half_life(self, half_life_s: float, time_s: float) -> None:
        """Decays by another half-life from `time_s` on; the counts at that moment stay what they are."""
        if half_life_s != self.half_life_s:
            self.move_landmark(max(time_s, self.landmark_s))
            self.half_life_s = half_life_s

    def begin_layout(self) -> None:
        """What is counted from here on is made good by the `bind` that gets a layout."""
        self._recounted = set()

    def drop_layout(self) -> None:
        """No `bind` will come for what `begin_layout` began."""
        self._recounted = None

    def laid_out_for(
        self, item_ids: Sequence[str], alive: NDArray[np.bool_], pause: Callable[[], None]
    ) -> NDArray[np.float64]:
        """Counts for the rows (n,) of another catalogue, relative to the landmark; dead rows have none.

        For a thread, after `begin_layout` and while events are counted; it calls `pause` between small steps.
        """
        counts = np.zeros(len(item_ids))
        tables = [self.own, *list(self._peers.values())]
        if any(tables):
            for start in range(0, len(counts), _LOOKED_UP):
                ids = item_ids[start : start + _LOOKED_UP]
                counts[start : start + len(ids)] = [sum(table.get(one, 0.0) for table in tables) for one in ids]
                pause()
        counts[~alive[: len(counts)]] = 0.0
        return counts

    def bind(
        self,
        rows: Mapping[str, int],
        size: int,
        laid_out: NDArray[np.float64] | None = None,
        later: Iterable[str] = (),
    ) -> None:
        """Lays the counts out for a catalogue of `size` rows.

        `laid_out` (m,) is what `laid_out_for` made for its first rows, and is taken over; `later` are the ids of the
        others.
        """
        recounted, self._recounted = self._recounted, None
        self._moved_rows, self._moved_by = [], []
        self.version += 1
        tables = [self.own, *self._peers.values()]
        if laid_out is not None and recounted is not None:
            missing = size - len(laid_out)
            self._counts = np.concatenate([laid_out, np.zeros(missing)]) if missing else laid_out
            self.changed_rows = set()
            for item_id in recounted.union(later):
                row = rows.get(item_id)
                if row is not None:
                    self._counts[row] = sum(table.get(item_id, 0.0) for table in tables)
                    self.changed_rows.add(row)
            return
        self._counts = np.zeros(size)
        self.changed_rows = None
        for counts in tables:
            for item_id, count in counts.items():
                row = rows.get(item_id)
                if row is not None:
                    self._counts[row] += count

    def grow(self, size: int) -> None:
        """Makes room for new rows at the end."""
        self._counts = np.concatenate([self._laid_out(), np.zeros(size - len(self._counts))])

    def merge_peer(
        self, peer: int, item_ids: list[str], counts: list[float], landmark_s: float, rows: Mapping[str, int]
    ) -> None:
        """Takes over counts of another shard, each replacing what that shard said before."""
        if landmark_s > self.landmark_s:
            self.move_landmark(landmark_s)
        factor = power_of_two((landmark_s - self.landmark_s) / self.half_life_s)
        known, laid_out = self._peers.setdefault(peer, {}), self._laid_out()
        for item_id, count in zip(item_ids, counts, strict=True):
            value = count * factor
            row = rows.get(item_id)
            if row is not None:
                laid_out[row] = max(0.0, laid_out[row] + value - known.get(item_id, 0.0))
                if self.changed_rows is not None:
                    self.changed_rows.add(row)
            known[item_id] = value
        if self._recounted is not None:
            self._recounted.update(item_ids)
        self.version += bool(item_ids)

    def forget_peer(self, peer: int, rows: Mapping[str, int]) -> None:
        """Drops what a shard said: it restarted and will say it again."""
        laid_out, told = self._laid_out(), self._peers.pop(peer, {})
        if self._recounted is not None:
            self._recounted.update(told)
        for item_id, count in told.items():
            row = rows.get(item_id)
            if row is not None:
                laid_out[row] = max(0.0, laid_out[row] - count)
        self.changed_rows = None
        self.version += 1

    def absorb_peers(self) -> None:
        """Makes the peers' counts this shard's own: for cutting shards anew."""
        for counts in self._peers.values():
            for item_id, count in counts.items():
                self.own[item_id] = self.own.get(item_id, 0.0) + count
        self._peers = {}
        self.version += 1
        self.changed_at = dict.fromkeys(self.own, self.version)

    def changes(self, since_version: int) -> tuple[list[str], list[float]]:
        """Own counts that changed after `since_version`."""
        if since_version <= 0:
            return list(self.own), list(self.own.values())
        ids = [item_id for item_id, version in self.changed_at.items() if version > since_version]
        return ids, [self.own[item_id] for item_id in ids]

    @property
    def row_counts(self) -> NDArray[np.float64]:
        """Counts by catalogue row relative to the landmark, (n,): a view, to be read before the next event."""
        return self._laid_out()

    def counts_at(self, time_s: float) -> NDArray[np.float64]:
        """count_i(t) by catalogue row, (n,)."""
        return self._laid_out() * self.decay(time_s)

    def counts_of(self, rows: NDArray[np.int64], time_s: float) -> NDArray[np.float64]:
        """count_i(t) of some rows, (k,); O(k). Rows of a catalogue that was larger get the count of the last row."""
        counts: NDArray[np.float64] = self._laid_out().take(rows, mode="clip")
        return counts * self.decay(time_s)

    def share_of(self, event_s: float | None, time_s: float) -> float:
        """What a user adds to a count at `time_s` by an event at `event_s`; None: by none."""
        return self._weight(event_s) * self.decay(time_s)

    def decay(self, time_s: float) -> float:
        """What states counts relative to the landmark as of `time_s`; at most 2^MAX_BACK.

        More would be asked for by a clock that went back by years, or by a question as of the distant past.
        """
        return power_of_two(min((self.landmark_s - time_s) / self.half_life_s, MAX_BACK))
