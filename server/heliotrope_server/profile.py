"""One user's profile: the newest events one by one, the older ones folded into one sum.

The interest sums of a profile are a pure function of the *set* of its events: neither the order of arrival nor the
split into batches matters, duplicates change nothing, and an undo may come before the event that it takes back. So the
sums are worked out when they are read: `settle` adds what has come since the last time in one step, or all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.event_ring import Columns, EventRing
from heliotrope_server.interest import GainTable, InterestSums, interest_vectors
from heliotrope_server.item_numbers import number_of
from heliotrope_server.passage import Passage
from heliotrope_server.rare_attribute import NOTHING, Rare

ONE_BY_ONE = 3
"""Up to so many events are added to the sums faster one by one than at once."""


class ItemSpace(Protocol):
    """What a profile needs of the catalogue: the vectors that its events point to, and how they count."""

    generation: int
    version: str
    parameters: Parameters
    gains: GainTable
    dimension: int
    prior: NDArray[np.float32]

    def vector(self, item_id: str) -> NDArray[np.float32] | None: ...

    def vectors(self, numbers: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...

    def project(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def passage(self, version: str) -> Passage | None: ...


class Applied(Enum):
    """What an event did to a profile."""

    RECORDED = 1
    DUPLICATE = 2
    UNDO_TOO_OLD = 3


RECORDED = (Applied.RECORDED, None)
DUPLICATE = (Applied.DUPLICATE, None)
_NO_IDS: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)


class Profile:
    """Mutable; belongs to the event loop of its shard. `space` gives the vectors; it is not kept.

    `total`, and what is made of it, may be read after `settle` until the next event.
    """

    __slots__ = (
        "_seen",
        "_settled",
        "_total",
        "events",
        "generation",
        "lsn",
        "newest_s",
        "prior",
        "rare",
        "user_id",
    )

    undone = Rare[dict[str, int]](NOTHING)
    folded = Rare[InterestSums | None](None)
    folded_version = Rare("")
    folded_count = Rare(0)
    folded_newest_s = Rare(0.0)
    folded_ids = Rare(_NO_IDS)
    # Item id -> time in us of its newest folded event with a positive gain, 0 if it has none.
    folded_items = Rare[dict[str, int]](NOTHING)
    # The same of the one event by which this user counts in the item's live popularity, where the ring has it not.
    _counted_apart = Rare[dict[str, int]](NOTHING)
    declared_interests = Rare[tuple[str, ...]](())
    declared_pooled = Rare[NDArray[np.float32] | None](None)
    declared_model_version = Rare("")
    segments = Rare[tuple[str, ...]](())
    segment_prior = Rare[NDArray[np.float32] | None](None)

    def __init__(self, user_id: str, space: ItemSpace) -> None:
        self.user_id = user_id
        self.lsn = 0
        self.events = EventRing(user_id)
        self.rare: dict[str, Any] = NOTHING
        self._seen: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None
        self._total: InterestSums | None = None
        self.newest_s = 0.0
        self.rederive(space)

    def apply(self, event: UserEvent) -> tuple[Applied, UserEvent | None]:
        """Applies one event; returns what it did and, for an undo, the event that was taken back."""
        if event.kind == EventKind.UNDO:
            return self._undo(event)
        if self.rare and (event.event_id in self.undone or self._is_folded(event.event_id)):
            return DUPLICATE
        if not self.events.append(event):
            return DUPLICATE
        time_s = event.time_us / 1e6
        if time_s > self.newest_s:
            self.newest_s = time_s
        return RECORDED

    def fold(self, ring_size: int, keep_after_s: float, space: ItemSpace) -> None:
        """Folds the oldest events, by (time, id), beyond `ring_size` that are older than `keep_after_s`.

        Nothing happens before the ring has overflown by a quarter, so that sorting is paid rarely. The interest vectors
        do not change; what is given up is telling the folded events apart.
        """
        if len(self.events) <= ring_size + ring_size // 4:
            return
        events = self.events.values()
        order = sorted(range(len(events)), key=lambda place: (events[place].time_us, events[place].event_id))
        places = [place for place in order[: len(order) - ring_size] if events[place].time_s < keep_after_s]
        if not places:
            return
        leaving = [events[place] for place in places]
        if self.folded is None:
            self.folded = InterestSums(len(space.parameters.half_lives_s), space.dimension, leaving[-1].time_s)
            self.folded_version = space.version
        if not self.folded_items:
            self.folded_items = {}
        columns = self.events.columns()
        _accumulate(self.folded, columns.at(places), space)
        for place, event in zip(places, leaving, strict=True):
            time_us = event.time_us if space.gains.one(event.kind, event.value) > 0.0 else 0
            self.folded_items[event.item_id] = max(self.folded_items.get(event.item_id, 0), time_us)
            if columns.counts[place]:
                self._count_apart(event.item_id, event.time_us)
        self.events.drop(places)
        self._total = None
        self.folded_count += len(leaving)
        self.folded_newest_s = max(self.folded_newest_s, leaving[-1].time_s)
        fresh = np.array([_id_hash(event.event_id) for event in leaving], dtype=np.uint64)
        self.folded_ids = np.union1d(self.folded_ids, fresh)
        self.undone = {event_id: time_us for event_id, time_us in self.undone.items() if time_us / 1e6 >= keep_after_s}

    @property
    def counted(self) -> dict[str, int]:
        """Item id -> time in us of the one event by which this user counts in the item's live popularity; made anew."""
        return {**self._counted_apart, **self.events.counted()}

    def counted_apart(self) -> dict[str, int]:
        """Those of `counted` by no event of the ring: by one that is folded."""
        return dict(self._counted_apart)

    def copy(self) -> "Profile":
        """One of its own with the same content, to be settled before it is read."""
        twin = Profile.__new__(Profile)
        for name in ("user_id", "lsn", "newest_s", "generation", "prior"):
            setattr(twin, name, getattr(self, name))
        twin.events = self.events.copy()
        twin.rare = {name: dict(value) if isinstance(value, dict) else value for name, value in self.rare.items()}
        twin._seen = twin._total = None
        twin._settled = 0
        return twin

    def restore(self, events: Sequence[UserEvent], counted: Mapping[str, int]) -> None:
        """Takes over stored events, and what the user counts by; the ring itself says which of its events count."""
        for event in events:
            self.events.append(event)
            if counted.get(event.item_id) == event.time_us and self.events.counting_place(event.item_id) < 0:
                self.events.set_counts(len(self.events) - 1, True)
        in_ring = self.events.counted() if events else {}
        for item_id, time_us in counted.items():
            if item_id not in in_ring:
                self._count_apart(item_id, time_us)

    def count(self, event: UserEvent) -> tuple[int | None, int | None]:
        """Counts a positive event that was recorded just now: (time in us that counted for its item before, time that
        counts now).

        A user counts once per item, by their newest positive event on it: whatever the order of arrival.
        """
        events = self.events
        place = events.counting_before_last()
        apart = self._counted_apart if self.rare else NOTHING
        before: int | None = apart.get(event.item_id) if place < 0 else events.time_us(place)
        if before is not None:
            if before >= event.time_us:
                return before, before
            if place >= 0:
                events.set_counts(place, False)
            else:
                del self._counted_apart[event.item_id]
        events.count_last()
        return before, event.time_us

    def uncount(self, event: UserEvent, space: ItemSpace) -> tuple[int | None, int | None]:
        """Takes a positive event back, after its undo: (before, now) as `count`; None: the user no longer counts."""
        counting = self.events.counting_place(event.item_id)
        before = self._counted_apart.get(event.item_id) if counting < 0 else self.events.time_us(counting)
        if before != event.time_us:
            return before, before
        if counting >= 0:
            self.events.set_counts(counting, False)
        else:
            del self._counted_apart[event.item_id]
        standing = [
            (other.time_us, place)
            for place, other in enumerate(self.events.values())
            if other.item_id == event.item_id and space.gains.one(other.kind, other.value) > 0.0
        ]
        folded_us = self.folded_items.get(event.item_id, 0)
        if folded_us:
            standing.append((folded_us, -1))
        after, place = max(standing, default=(0, -1))
        if not after:
            return before, None
        if place >= 0:
            self.events.set_counts(place, True)
        else:
            self._count_apart(event.item_id, after)
        return before, after

    @property
    def plain(self) -> bool:
        """Whether there is nothing to this profile but the events in its ring."""
        return not self.rare

    @property
    def says_something(self) -> bool:
        """Whether the interest vectors hold anything of this user's own: events that count, or declared interests."""
        return self.declared_pooled is not None or any(mass > 0.0 for mass in self.total.masses)

    @property
    def total(self) -> InterestSums:
        """The interest sums of all events."""
        assert self._total is not None and self._settled == len(self.events), "settle the profile before it is read"
        return self._total

    def settle(self, space: ItemSpace) -> None:
        """Brings the sums up to date. `space` must be the one of `generation`."""
        if self._total is None:
            if self.folded is None:
                self._total = InterestSums(len(space.parameters.half_lives_s), space.dimension, self.newest_s)
            else:
                self._total = self.folded.copy()
            self._settled = 0
        count = len(self.events)
        if count - self._settled > ONE_BY_ONE:
            _accumulate(self._total, self.events.columns(self._settled), space)
        else:
            for place in range(self._settled, count):
                self._add(self._total, place, space)
        self._settled = count

    def rest(self) -> None:
        """Drops what can be worked out again, until the next `settle`."""
        self._total = None
        self._seen = None
        self.events.trim()

    def rederive(self, space: ItemSpace) -> None:
        """Turns to another snapshot, or to the events that were loaded. Exact inside the ring.

        The folded sum moves by the items that it is known to be of, and for the rest by a linear map; see passage.
        """
        if self.folded is not None and self.folded_version != space.version:
            passage, folded = space.passage(self.folded_version), self.folded
            # Without one the sums are lost: too few items are shared, or the old snapshot is gone.
            self.folded = None
            if passage is not None:
                self.folded = passage.carried_over(folded, self.folded_items, self.folded_newest_s)
            self.folded_version = space.version
        self.newest_s = max(self.events.newest_us() / 1e6, self.folded_newest_s)
        self._total = None
        self._settled = 0
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

    def seen_rows(
        self, rows_of: Callable[[NDArray[np.int32]], NDArray[np.int64]], catalogue_version: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Catalogue rows of the items with an event, without repeats; cached until either side changes. `rows_of` gives
        the rows of living items by their numbers.
        """
        key = (*catalogue_version, self.lsn)
        if self._seen is None or key != self._seen[0]:
            numbers = self.events.item_numbers()
            if self.folded_items:
                folded = np.array([number_of(item_id) for item_id in self.folded_items], dtype=np.int32)
                numbers = np.concatenate([numbers, folded])
            self._seen = key, rows_of(np.unique(numbers))
        return self._seen[1]

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

    def _add(self, total: InterestSums, place: int, space: ItemSpace) -> None:
        item_id, kind, value, time_us = self.events.gist(place)
        vector = space.vector(item_id)
        gain = space.gains.one(kind, value)
        if vector is not None and gain:
            total.add(gain, vector, time_us / 1e6, space.parameters.half_lives_s)

    def _undo(self, undo: UserEvent) -> tuple[Applied, UserEvent | None]:
        target_id = undo.undone_event_id
        if target_id in self.undone:
            return DUPLICATE
        if self._is_folded(target_id):
            return Applied.UNDO_TOO_OLD, None
        if not self.undone:
            self.undone = {}
        self.undone[target_id] = undo.time_us
        popped = self.events.pop(target_id)
        if popped is None:
            return RECORDED
        target, counted = popped
        if counted:
            # Until `uncount` says what counts instead.
            self._count_apart(target.item_id, target.time_us)
        self._total = None
        if target.time_s >= self.newest_s:
            self.newest_s = max(self.folded_newest_s, self.events.newest_us() / 1e6)
        return Applied.RECORDED, target

    def _count_apart(self, item_id: str, time_us: int) -> None:
        if not self._counted_apart:
            self._counted_apart = {}
        self._counted_apart[item_id] = time_us

    def _is_folded(self, event_id: str) -> bool:
        if not len(self.folded_ids):
            return False
        wanted = np.uint64(_id_hash(event_id))
        place = int(np.searchsorted(self.folded_ids, wanted))
        return place < len(self.folded_ids) and bool(self.folded_ids[place] == wanted)


def _accumulate(sums: InterestSums, events: Columns, space: ItemSpace) -> None:
    """Adds events whose item the catalogue knows; one without a vector counts for nothing."""
    vectors, known = space.vectors(events.numbers)
    gains = space.gains.many(events.kinds, events.values) * known
    sums.add_many(gains, vectors, events.times_us / 1e6, space.parameters.half_lives_s)


def _id_hash(event_id: str) -> int:
    return xxhash.xxh3_64_intdigest(event_id.encode())
