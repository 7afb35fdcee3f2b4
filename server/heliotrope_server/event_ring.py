"""The events that a profile remembers one by one, packed: 26 bytes and the event id for each.

A profile of 20 events as tuples with their strings, in dicts, takes some 10 KB; so packed it takes one.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from heliotrope_indexer.search import PackedEvents
from heliotrope_server.event import UserEvent
from heliotrope_server.item_numbers import item_id_of, item_ids_of, known_number, number_of

COUNTS = 0x80
"""Bit beside the kind of an event: by this event its user counts in the live popularity of its item."""

_RECORD = struct.Struct("<dqB")
_RECORDS = np.dtype([("value", "<f8"), ("time_us", "<i8"), ("kind", "u1")])
_HASH = 4
_NUMBER = struct.Struct("<i")
_ROW = _HASH + _NUMBER.size + _RECORD.size
# Looked up once: together these are a third of what taking in an event costs.
_hash, _pack_number, _pack_record = xxhash.xxh32_digest, _NUMBER.pack, _RECORD.pack


class Columns(NamedTuple):
    """Events in the order of their coming, as arrays (n,); `counts` says by which of them the user counts."""

    numbers: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    values: NDArray[np.float64]
    times_us: NDArray[np.int64]
    counts: NDArray[np.bool_]

    def at(self, places: Sequence[int]) -> "Columns":
        """Those at some places."""
        chosen = list(places)
        return Columns(
            self.numbers[chosen], self.kinds[chosen], self.values[chosen], self.times_us[chosen], self.counts[chosen]
        )


class EventRing(Mapping[str, UserEvent]):
    """Events of one user by event id, in the order of their coming; the place of an event is its number in that order.

    The hashes of the ids only make finding one fast: where a hash is found the ids themselves are compared, so no two
    ids are ever taken for one.
    """

    __slots__ = ("_columns", "_ids", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        # The hashes of all events, then their item numbers, then their records: each object more would take 60 bytes.
        self._columns = bytearray()
        self._ids = bytearray()  # each with a byte for its length before it

    def __len__(self) -> int:
        return len(self._columns) // _ROW

    def __iter__(self) -> Iterator[str]:
        return iter([raw.decode() for raw in self._raw_ids()])

    def __contains__(self, event_id: object) -> bool:
        return isinstance(event_id, str) and self.place(event_id) >= 0

    def __getitem__(self, event_id: str) -> UserEvent:
        place = self.place(event_id)
        if place < 0:
            raise KeyError(event_id)
        return self.event(place)

    def values(self) -> list[UserEvent]:  # type: ignore[override]  # a list does all that a ValuesView does here
        return [
            UserEvent(self.user_id, raw.decode(), kind & ~COUNTS, item_id_of(number), value, time_us)
            for raw, (number,), (value, time_us, kind) in zip(
                self._raw_ids(),
                _NUMBER.iter_unpack(self._items()),
                _RECORD.iter_unpack(self._records()),
                strict=True,
            )
        ]

    def append(self, event: UserEvent) -> bool:
        """Takes an event in; False, and nothing else, if its id is here. Raises ValueError for an id over 255 bytes."""
        _, event_id, kind, item_id, value, time_us, _ = event
        raw = event_id.encode()
        found = _hash(raw)
        ids, columns = self._ids, self._columns
        hashes_end = len(columns) // _ROW * _HASH
        if columns.find(found, 0, hashes_end) >= 0 and self._place(raw, found) >= 0:
            return False
        ids.append(len(raw))
        ids += raw
        # From the last column to the first: none has moved yet when its turn comes.
        columns += _pack_record(value, time_us, kind)
        items_end = hashes_end + hashes_end  # a number has the size of a hash
        columns[items_end:items_end] = _pack_number(number_of(item_id))
        columns[hashes_end:hashes_end] = found
        return True

    def count_last(self) -> None:
        """By the event that came last the user counts."""
        self._columns[-1] |= COUNTS

    def counting_before_last(self) -> int:
        """The place of the event by which the user counts for the item of the event that came last; -1 for none."""
        columns = self._columns
        last = len(columns) // _ROW - 1
        start, at = self._item_at(0), self._item_at(last)
        number = columns[at : at + _NUMBER.size]
        return -1 if columns.rfind(number, start, at) < 0 else self._counting(number, last)

    def place(self, event_id: str) -> int:
        """The place of an event, -1 if it is not here."""
        raw = event_id.encode()
        return self._place(raw, _hash(raw))

    def event(self, place: int) -> UserEvent:
        item_id, kind, value, time_us = self.gist(place)
        return UserEvent(self.user_id, self._raw_id(place).decode(), kind, item_id, value, time_us)

    def gist(self, place: int) -> tuple[str, int, float, int]:
        """Item id, kind, value and time in us of an event; its own id takes a walk over those before it."""
        value, time_us, kind = _RECORD.unpack_from(self._columns, self._record_at(place))
        (number,) = _NUMBER.unpack_from(self._columns, self._item_at(place))
        return item_id_of(number), kind & ~COUNTS, value, time_us

    def pop(self, event_id: str) -> tuple[UserEvent, bool] | None:
        """Takes an event out: with whether it counted; None if it is not here."""
        place = self.place(event_id)
        if place < 0:
            return None
        event, counted = self.event(place), self.counts(place)
        start = self._id_start(place)
        del self._ids[start : start + 1 + self._ids[start]]
        ends = ((self._record_at(place), _RECORD.size), (self._item_at(place), _NUMBER.size), (place * _HASH, _HASH))
        for at, size in ends:
            del self._columns[at : at + size]
        return event, counted

    def drop(self, places: Sequence[int]) -> None:
        """Takes the events at some places out."""
        keep = np.ones(len(self), dtype=np.bool_)
        keep[list(places)] = False
        raws = self._raw_ids()
        self._ids = bytearray(b"".join(bytes([len(raws[place])]) + raws[place] for place in np.flatnonzero(keep)))
        columns = [
            np.frombuffer(self._hashes(), dtype="<u4"),
            np.frombuffer(self._items(), dtype="<i4"),
            np.frombuffer(self._records(), dtype=_RECORDS),
        ]
        self._columns = bytearray(b"".join(column[keep].tobytes() for column in columns))

    def columns(self, start: int = 0) -> Columns:
        """The events from place `start` on."""
        records = np.frombuffer(self._records(start), dtype=_RECORDS)
        numbers = np.frombuffer(self._items(start), dtype="<i4")
        kinds = records["kind"]
        return Columns(numbers, kinds & ~np.uint8(COUNTS), records["value"], records["time_us"], kinds >= COUNTS)

    def item_numbers(self) -> NDArray[np.int32]:
        """The numbers of the items of all events, (n,); a copy."""
        return np.frombuffer(self._items(), dtype="<i4").astype(np.int32)

    def names(self, places: Sequence[int], starts: NDArray[np.int64]) -> dict[int, tuple[bytes, bytes]]:
        """The ids of events and of their items by place; `starts` are where the ids of the events begin, by place."""
        ids, columns, first = self._ids, self._columns, self._item_at(0)
        named = {}
        for place, start in zip(places, starts.take(places).tolist(), strict=True):
            (number,) = _NUMBER.unpack_from(columns, first + place * _NUMBER.size)
            named[place] = bytes(ids[start + 1 : start + 1 + ids[start]]), item_id_of(number).encode()
        return named

    def newest_us(self) -> int:
        """The time of the newest event in microseconds; 0 without events."""
        return max((time_us for _, time_us, _ in _RECORD.iter_unpack(self._records())), default=0)

    def time_us(self, place: int) -> int:
        found: int = _RECORD.unpack_from(self._columns, self._record_at(place))[1]
        return found

    def counting_place(self, item_id: str) -> int:
        """The place of the event by which the user counts for an item, -1 if there is none here."""
        number = known_number(item_id)
        if number is None:
            return -1
        return self._counting(_NUMBER.pack(number), len(self))

    def counts(self, place: int) -> bool:
        return self._columns[self._record_at(place) + _RECORD.size - 1] >= COUNTS

    def set_counts(self, place: int, counts: bool) -> None:
        columns, at = self._columns, self._record_at(place) + _RECORD.size - 1
        columns[at] = columns[at] | COUNTS if counts else columns[at] & ~COUNTS

    def counted(self) -> dict[str, int]:
        """Time in microseconds of the event that counts, by item."""
        columns = self.columns()
        places = np.flatnonzero(columns.counts)
        return dict(zip(item_ids_of(columns.numbers[places]), columns.times_us[places].tolist(), strict=True))

    def trim(self) -> None:
        """Gives back the room that the columns keep for growing."""
        self._columns, self._ids = bytearray(self._columns), bytearray(self._ids)

    def packed(self) -> PackedEvents:
        """What the compiled explanation reads; of the ring itself, so to be dropped before the next event."""
        return PackedEvents(len(self), self._columns, self._ids)

    def copy(self) -> "EventRing":
        twin = EventRing(self.user_id)
        twin._columns, twin._ids = bytearray(self._columns), bytearray(self._ids)
        return twin

    def dump(self) -> tuple[bytes, list[str], bytes]:
        """What is stored: ids, item ids, and records; see `load`."""
        numbers = np.frombuffer(self._items(), dtype="<i4")
        return bytes(self._ids), item_ids_of(numbers), bytes(self._records())

    @classmethod
    def load(cls, user_id: str, dumped: tuple[bytes, list[str], bytes]) -> "EventRing":
        """The inverse of `dump`."""
        ring = cls(user_id)
        ids, item_ids, records = dumped
        ring._ids = bytearray(ids)
        hashes = b"".join(map(_hash, ring._raw_ids()))
        numbers = np.array([number_of(item_id) for item_id in item_ids], dtype="<i4").tobytes()
        ring._columns = bytearray(b"".join((hashes, numbers, records)))
        return ring

    def _hashes(self) -> bytearray:
        return self._columns[: self._item_at(0)]

    def _items(self, start: int = 0) -> bytearray:
        return self._columns[self._item_at(start) : self._record_at(0)]

    def _records(self, start: int = 0) -> bytearray:
        return self._columns[self._record_at(start) :]

    def _item_at(self, place: int) -> int:
        return len(self._columns) // _ROW * _HASH + place * _NUMBER.size

    def _record_at(self, place: int) -> int:
        return len(self._columns) // _ROW * (_HASH + _NUMBER.size) + place * _RECORD.size

    def _place(self, raw: bytes, found: bytes) -> int:
        end = self._item_at(0)
        at = self._columns.find(found, 0, end)
        while at >= 0:
            if at % _HASH == 0 and self._raw_id(at // _HASH) == raw:
                return at // _HASH
            at = self._columns.find(found, at + 1, end)
        return -1

    def _counting(self, packed: bytes | bytearray, end: int) -> int:
        """The place of the last event before the place `end` on an item that counts."""
        start, stop = self._item_at(0), self._item_at(end)
        at = self._columns.rfind(packed, start, stop)
        while at >= 0:
            place, rest = divmod(at - start, _NUMBER.size)
            if rest == 0 and self.counts(place):
                return place
            at = self._columns.rfind(packed, start, at + _NUMBER.size - 1)
        return -1

    def _raw_ids(self) -> list[bytes]:
        ids, raws, at = bytes(self._ids), [], 0
        while at < len(ids):
            end = at + 1 + ids[at]
            raws.append(ids[at + 1 : end])
            at = end
        return raws

    def _raw_id(self, place: int) -> bytes:
        start = self._id_start(place)
        return bytes(self._ids[start + 1 : start + 1 + self._ids[start]])

    def _id_start(self, place: int) -> int:
        ids, at = self._ids, 0
        for _ in range(place):
            at += 1 + ids[at]
        return at
