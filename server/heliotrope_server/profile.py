"""One user's profile: the newest events one by one, the older ones folded into one sum.

The interest sums of a profile are a pure function of the *set* of its events: neither the order of arrival nor the
split into batches matters, duplicates change nothing, and an undo may come before the event that it takes back.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.event import KIND_NAMES, EventKind, UserEvent
from heliotrope_server.interest import InterestSums, interest_vectors


class ItemSpace(Protocol):
    """What a profile needs of the catalogue: the vectors that its events point to, and how they count."""

    generation: int
    version: str
    parameters: Parameters
    dimension: int
    prior: NDArray[np.float32]

    def vector(self, item_id: str) -> NDArray[np.float32] | None: ...

    def project(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def folded_map(self, version: str) -> NDArray[np.float32] | None: ...


class Applied(Enum):
    """What an event did to a profile."""

    RECORDED = 1
    DUPLICATE = 2
    UNDO_TOO_OLD = 3


class Profile:
    """Mutable; belongs to the event loop of its shard. `space` gives the vectors; it is not kept."""

    __slots__ = (
        "_seen_key",
        "_seen_rows",
        "counted",
        "declared_interests",
        "declared_model_version",
        "declared_pooled",
        "events",
        "folded",
        "folded_count",
        "folded_ids",
        "folded_items",
        "folded_newest_s",
        "folded_version",
        "generation",
        "lsn",
        "newest_s",
        "prior",
        "segment_prior",
        "segments",
        "total",
        "undone",
        "user_id",
    )

    def __init__(self, user_id: str, space: ItemSpace) -> None:
        self.user_id = user_id
        self.lsn = 0
        self.events: dict[str, UserEvent] = {}
        self.undone: dict[str, int] = {}
        self.folded: InterestSums | None = None
        self.folded_version = ""
        self.folded_count = 0
        self.folded_newest_s = 0.0
        self.folded_ids: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        # Item id -> time in us of its newest folded event with a positive gain, 0 if it has none.
        self.folded_items: dict[str, int] = {}
        # Item id -> time in us of the one event by which this user counts in the item's live popularity.
        self.counted: dict[str, int] = {}
        self.declared_interests: tuple[str, ...] = ()
        self.declared_pooled: NDArray[np.float32] | None = None
        self.declared_model_version = ""
        self.segments: tuple[str, ...] = ()
        self.segment_prior: NDArray[np.float32] | None = None
        self.newest_s = 0.0
        self._seen_key: tuple[int, int, int] | None = None
        self._seen_rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.rederive(space)

    def apply(self, event: UserEvent, space: ItemSpace) -> tuple[Applied, UserEvent | None]:
        """Applies one event; returns what it did and, for an undo, the event that was taken back."""
        if event.kind == EventKind.UNDO:
            return self._undo(event, space)
        if event.event_id in self.events or event.event_id in self.undone or self._is_folded(event.event_id):
            return Applied.DUPLICATE, None
        self.events[event.event_id] = event
        self._add(event, space, 1)
        self.newest_s = max(self.newest_s, event.time_s)
        return Applied.RECORDED, None

    def fold(self, ring_size: int, keep_after_s: float, space: ItemSpace) -> None:
        """Folds the oldest events, by (time, id), beyond `ring_size` that are older than `keep_after_s`.

        Called when the ring has overflown by a quarter, so that sorting is paid rarely. The interest vectors do not
        change; what is given up is telling the folded events apart.
        """
        if len(self.events) <= ring_size + ring_size // 4:
            return
        ordered = sorted(self.events.values(), key=lambda event: (event.time_us, event.event_id))
        leaving = [event for event in ordered[: len(ordered) - ring_size] if event.time_s < keep_after_s]
        if not leaving:
            return
        if self.folded is None:
            self.folded = InterestSums(len(space.parameters.half_lives_s), space.dimension, leaving[-1].time_s)
            self.folded_version = space.version
        _accumulate(self.folded, leaving, space)
        for event in leaving:
            del self.events[event.event_id]
            time_us = event.time_us if self._is_positive(event, space) else 0
            self.folded_items[event.item_id] = max(self.folded_items.get(event.item_id, 0), time_us)
        self.folded_count += len(leaving)
        self.folded_newest_s = max(self.folded_newest_s, leaving[-1].time_s)
        fresh = np.array([_id_hash(event.event_id) for event in leaving], dtype=np.uint64)
        self.folded_ids = np.union1d(self.folded_ids, fresh)
        self.undone = {event_id: time_us for event_id, time_us in self.undone.items() if time_us / 1e6 >= keep_after_s}

    def count(self, event: UserEvent) -> tuple[int | None, int | None]:
        """Counts a recorded positive event: (time in us that counted for its item before, time that counts now).

        A user counts once per item, by their newest positive event on it: whatever the order of arrival.
        """
        before = self.counted.get(event.item_id)
        after = event.time_us if before is None else max(before, event.time_us)
        self.counted[event.item_id] = after
        return before, after

    def uncount(self, event: UserEvent, space: ItemSpace) -> tuple[int | None, int | None]:
        """Takes a positive event back, after its undo: (before, now) as `count`; None: the user no longer counts."""
        before = self.counted.get(event.item_id)
        if before != event.time_us:
            return before, before
        times = [
            other.time_us
            for other in self.events.values()
            if other.item_id == event.item_id and self._is_positive(other, space)
        ]
        after = max(times, default=0) or self.folded_items.get(event.item_id, 0) or None
        if after is None:
            del self.counted[event.item_id]
        else:
            self.counted[event.item_id] = after
        return before, after

    @property
    def says_something(self) -> bool:
        """Whether the interest vectors hold anything of this user's own: events that count, or declared interests."""
        return self.declared_pooled is not None or any(mass > 0.0 for mass in self.total.masses)

    def rederive(self, space: ItemSpace) -> None:
        """Computes the sums afresh from the events, for another snapshot or after loading. Exact inside the ring.

        The folded sum is carried over by the linear map that the catalogue fitted between the two snapshots.
        """
        half_lives_s = space.parameters.half_lives_s
        if self.folded is not None and self.folded_version != space.version:
            self.folded = _carried_over(self.folded, space.folded_map(self.folded_version), space)
            self.folded_version = space.version
        events = list(self.events.values())
        self.newest_s = max((event.time_s for event in events), default=0.0)
        self.newest_s = max(self.newest_s, self.folded_newest_s)
        if self.folded is None:
            self.total = InterestSums(len(half_lives_s), space.dimension, self.newest_s)
        else:
            self.total = self.folded.copy()
        _accumulate(self.total, events, space)
        self.generation = space.generation
        self.segment_prior = None
        self.refresh_prior(space)

    def refresh_prior(self, space: ItemSpace) -> None:
        """The prior: the mean of the declared interests in item space, the segments', or the population's."""
        if self.declared_pooled is None:
            self.prior = space.prior if self.segment_prior is None else self.segment_prior
        else:
            self.prior = space.project(self.declared_pooled).mean(axis=0)

    def read_time_s(self, time_s: float) -> float:
        """The moment to decay to: decay never runs backwards from the newest event."""
        return max(time_s, self.newest_s)

    def interest_vectors(self, time_s: float, parameters: Parameters) -> NDArray[np.float32]:
        """v_h at `time_s`, (H, d)."""
        return interest_vectors(
            self.total, self.prior, self.read_time_s(time_s), parameters.half_lives_s, parameters.kappas
        )

    def seen_rows(self, row_of: Any, catalogue_version: tuple[int, int]) -> NDArray[np.int64]:
        """Catalogue rows of the items with an event, unsorted and without repeats; cached until either side changes."""
        key = (*catalogue_version, self.lsn)
        if key != self._seen_key:
            ids = self.folded_items.keys() | {event.item_id for event in self.events.values()}
            rows = [row for row in map(row_of, ids) if row is not None]
            self._seen_rows = np.array(rows, dtype=np.int64)
            self._seen_key = key
        return self._seen_rows

    @property
    def event_count(self) -> int:
        return len(self.events) + self.folded_count

    def folded_share(self, parameters: Parameters) -> float:
        """Share of the mass of the longest horizon that is folded, 0 to 1."""
        if self.folded is None:
            return 0.0
        folded = max(self.folded.masses_at(self.newest_s, parameters.half_lives_s))
        total = max(self.total.masses_at(self.newest_s, parameters.half_lives_s))
        return min(1.0, folded / total) if total > 0.0 else 0.0

    def _is_positive(self, event: UserEvent, space: ItemSpace) -> bool:
        return space.parameters.gain(KIND_NAMES[event.kind], event.value) > 0.0

    def _add(self, event: UserEvent, space: ItemSpace, sign: int) -> None:
        vector = space.vector(event.item_id)
        gain = space.parameters.gain(KIND_NAMES[event.kind], event.value)
        if vector is not None and gain:
            self.total.add(gain, vector, event.time_s, space.parameters.half_lives_s, sign)

    def _undo(self, undo: UserEvent, space: ItemSpace) -> tuple[Applied, UserEvent | None]:
        target_id = undo.undone_event_id
        if target_id in self.undone:
            return Applied.DUPLICATE, None
        if self._is_folded(target_id):
            return Applied.UNDO_TOO_OLD, None
        self.undone[target_id] = undo.time_us
        target = self.events.pop(target_id, None)
        if target is None:
            return Applied.RECORDED, None
        self._add(target, space, -1)
        if target.time_s >= self.newest_s:
            times = (event.time_s for event in self.events.values())
            self.newest_s = max(self.folded_newest_s, max(times, default=0.0))
        if not self.events and self.folded is None:
            self.total = InterestSums(len(space.parameters.half_lives_s), space.dimension)
        return Applied.RECORDED, target

    def _is_folded(self, event_id: str) -> bool:
        if not len(self.folded_ids):
            return False
        wanted = np.uint64(_id_hash(event_id))
        place = int(np.searchsorted(self.folded_ids, wanted))
        return place < len(self.folded_ids) and bool(self.folded_ids[place] == wanted)


def _accumulate(sums: InterestSums, events: Sequence[UserEvent], space: ItemSpace) -> None:
    """Adds events whose item the catalogue knows; one without a vector counts for nothing."""
    gains, vectors, times = [], [], []
    for event in events:
        vector = space.vector(event.item_id)
        gain = space.parameters.gain(KIND_NAMES[event.kind], event.value)
        if vector is not None and gain:
            gains.append(gain)
            vectors.append(vector)
            times.append(event.time_s)
    if gains:
        sums.add_many(np.array(gains), np.array(vectors), np.array(times), space.parameters.half_lives_s)


def _carried_over(old: InterestSums, matrix: NDArray[np.float32] | None, space: ItemSpace) -> InterestSums | None:
    """Folded sums in the new space. A horizon that did not exist takes the nearest old one's; None if no map exists."""
    if matrix is None:
        return None
    horizons = len(space.parameters.half_lives_s)
    new = InterestSums(horizons, space.dimension, old.landmark_s)
    for horizon in range(horizons):
        source = min(horizon, len(old.masses) - 1)
        new.sums[horizon] = old.sums[source] @ matrix
        new.masses[horizon] = old.masses[source]
    return new


def _id_hash(event_id: str) -> int:
    return xxhash.xxh3_64_intdigest(event_id.encode())
