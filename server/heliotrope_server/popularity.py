"""Live popularity: the decayed number of users with a recent positive event on every item.

    count_i(t) = sum over users u of 2^(-(t - t_ui) / T),    t_ui: u's newest positive event on item i

kept by forward decay like the interest sums. A user counts at most once, however many events they send: an event moves
them from their older time to the newer one. Each shard counts its own users and hears of the others' counts from its
peers; the served count is the sum.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.interest import MAX_EXPONENT, power_of_two

MOST_MOVED = 4_096
"""Moves of single users that wait to be laid out together."""
MOST_CHANGED = 0.1
"""Where a larger share of the rows has changed, and more than MOST_MOVED, nobody remembers which: all are looked at
again. The set of 100,000 rows took 7 MB on a shard that took events and was asked nothing."""
MAX_BACK = 32.0


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
        self.changed_rows = None
        self.landmark_s = landmark_s

    def change_half_life(self, half_life_s: float, time_s: float) -> None:
        """Decays by another half-life from `time_s` on; the counts at that moment stay what they are."""
        if half_life_s != self.half_life_s:
            self.move_landmark(max(time_s, self.landmark_s))
            self.half_life_s = half_life_s

    def bind(self, rows: Mapping[str, int], size: int) -> None:
        """Lays the counts out for a catalogue of `size` rows."""
        self._moved_rows, self._moved_by = [], []
        self._counts = np.zeros(size)
        self.changed_rows = None
        for counts in (self.own, *self._peers.values()):
            for item_id, count in counts.items():
                row = rows.get(item_id)
                if row is not None:
                    self._counts[row] += count
        self.version += 1

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
        self.version += bool(item_ids)

    def forget_peer(self, peer: int, rows: Mapping[str, int]) -> None:
        """Drops what a shard said: it restarted and will say it again."""
        laid_out = self._laid_out()
        for item_id, count in self._peers.pop(peer, {}).items():
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

    def decay(self, time_s: float) -> float:
        """What states counts relative to the landmark as of `time_s`; at most 2^MAX_BACK.

        More would be asked for by a clock that went back by years, or by a question as of the distant past.
        """
        return power_of_two(min((self.landmark_s - time_s) / self.half_life_s, MAX_BACK))
