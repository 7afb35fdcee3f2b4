"""Reads events into columns: who did what with which item, and when.

Columns: `user_id,item_id,timestamp` and any of `type,value,event_id`, or the four-column log
`user_id,item_id,timestamp,label`. Without a type, a label or rating of 1 is a click, 0 a dislike, and any
other number a rating of that many stars; a column called `rating` always holds ratings. Times are Unix
seconds or ISO 8601 (UTC when they carry no zone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.errors import ColumnError
from heliotrope_indexer.moment import unix_seconds
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.source import Source

ALIASES = {
    "user_id": ("user_id", "userId", "user"),
    "item_id": ("item_id", "itemId", "movieId", "movie_id", "book_id", "item"),
    "timestamp": ("timestamp", "time", "event_time"),
    "type": ("type", "event_type"),
    "value": ("value",),
    "rating": ("rating", "stars"),
    "label": ("label",),
    "event_id": ("event_id",),
}
EARLIEST_S = 0.0
LATEST_S = 4_102_444_800.0
"""2100-01-01: a time behind it is in milliseconds or broken."""


@dataclass(frozen=True)
class EventTable:
    """E events as parallel columns, sorted by time (equal times keep their order in the files)."""

    user: NDArray[np.int64]
    """(E,) index into `user_ids`."""
    row: NDArray[np.int64]
    """(E,) item row."""
    kind: NDArray[np.int8]
    """(E,) index into EVENT_TYPES."""
    value: NDArray[np.float64]
    """(E,) strength: stars of a rating, otherwise a factor."""
    time: NDArray[np.float64]
    """(E,) Unix seconds."""
    user_ids: list[str]

    def __len__(self) -> int:
        return len(self.time)

    def select(self, keep: NDArray[Any]) -> EventTable:
        """The events that a mask or an index array picks, over the same users."""
        return EventTable(
            self.user[keep], self.row[keep], self.kind[keep], self.value[keep], self.time[keep], self.user_ids
        )


def read_events(sources: Sequence[Source], item_rows: Mapping[str, int], rejects: RejectLog) -> EventTable:
    """All usable events of all files.

    Rejected: `no_user`, `no_id`, `unknown_item`, `unknown_type`, `bad_value`, `bad_time`, `duplicate_event`
    (the same event id of a user, or without ids the same user, item, type, value and time), and what the
    source cannot read. Raises ColumnError when a file has no user, item or time column.
    """
    users: dict[str, int] = {}
    seen: set[tuple[Any, ...]] = set()
    columns: list[tuple[int, int, int, float, float]] = []
    for source in sources:
        layouts: dict[tuple[str, ...], dict[str, str]] = {}
        for row in source.rows(rejects):
            names = tuple(row.values)
            if names not in layouts:
                layouts[names] = _columns(source, names)
            try:
                event_id, user_id, item_row, kind, value, time = _event(row.values, layouts[names], item_rows)
            except _Rejected as rejected:
                rejects.add(source.path, row.line, rejected.reason, rejected.detail, dict(row.values))
                continue
            key = (user_id, event_id) if event_id else (user_id, item_row, kind, value, time)
            if key in seen:
                rejects.add(source.path, row.line, "duplicate_event", "the same event came before", dict(row.values))
                continue
            seen.add(key)
            columns.append((users.setdefault(user_id, len(users)), item_row, kind, value, time))
    table = np.array(columns, dtype=np.float64).reshape(-1, 5)
    table = table[np.argsort(table[:, 4], kind="stable")]
    return EventTable(
        user=table[:, 0].astype(np.int64),
        row=table[:, 1].astype(np.int64),
        kind=table[:, 2].astype(np.int8),
        value=table[:, 3].copy(),
        time=table[:, 4].copy(),
        user_ids=list(users),
    )


class _Rejected(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _columns(source: Source, names: Sequence[str]) -> dict[str, str]:
    resolved = {ours: parts[0] for ours, parts in source.resolve(names, ALIASES).items()}
    for needed in ("user_id", "item_id", "timestamp"):
        if needed not in resolved and not source.may_omit_columns:
            raise ColumnError(
                f"{source.path} has no {needed} among {', '.join(names)[:200]}; map it with --event-columns"
            )
    return resolved


def _event(
    values: Mapping[str, Any], columns: Mapping[str, str], item_rows: Mapping[str, int]
) -> tuple[str, str, int, int, float, float]:
    def get(name: str) -> str:
        value = values.get(columns[name]) if name in columns else None
        return "" if value is None else str(value).strip()

    user_id, item_id = get("user_id"), get("item_id")
    if not user_id:
        raise _Rejected("no_user", "the user id is empty")
    if not item_id:
        raise _Rejected("no_id", "the item id is empty")
    item_row = item_rows.get(item_id)
    if item_row is None and item_id.endswith(".0"):
        item_row = item_rows.get(item_id[:-2])
    if item_row is None:
        raise _Rejected("unknown_item", f"item {item_id[:100]} is not in the catalogue")
    kind, value = _kind_and_value(get("type").lower(), get("value"), get("rating"), get("label"))
    return get("event_id"), user_id, item_row, EVENT_TYPES.index(kind), value, _time(get("timestamp"))


def _kind_and_value(kind: str, value: str, rating: str, label: str) -> tuple[Any, float]:
    if kind:
        if kind not in EVENT_TYPES:
            raise _Rejected("unknown_type", f"type {kind[:60]!r}; known are {', '.join(EVENT_TYPES)}")
        return kind, _number(value or rating or label or "1")
    if rating:
        return "rating", _number(rating)
    if label or value:
        number = _number(label or value)
        if number == 0:
            return "dislike", 1.0
        return ("click", 1.0) if number == 1 else ("rating", number)
    return "click", 1.0


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _Rejected("bad_value", f"{text[:60]!r} is not a number") from None
    if not math.isfinite(number) or not 0 <= number <= 100:
        raise _Rejected("bad_value", f"{text[:60]} is not within 0 .. 100")
    return number


def _time(text: str) -> float:
    try:
        time = unix_seconds(text)
    except ValueError:
        raise _Rejected("bad_time", f"{text[:60]!r} is neither Unix seconds nor ISO 8601") from None
    if not EARLIEST_S < time < LATEST_S:
        raise _Rejected("bad_time", f"{text[:60]} is not between 1970 and 2100")
    return time
