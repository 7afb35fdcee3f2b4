"""Events as the engine sees them, and what of them is admitted."""

import math
from enum import IntEnum
from typing import NamedTuple

from heliotrope_server.errors import InvalidArgumentError

MAX_EVENT_ID_BYTES = 128
MAX_ID_BYTES = 256
MAX_FUTURE_S = 300.0
MAX_STARS = 10.0
MAX_VALUE = 100.0


class EventKind(IntEnum):
    """The numbers are those of heliotrope.v1.EventType and of the log; they never change."""

    VIEW = 1
    CLICK = 2
    PURCHASE = 3
    RATING = 4
    FAVORITE = 5
    SHARE = 6
    DISLIKE = 7
    HIDE = 8
    UNDO = 9

    @property
    def parameter_name(self) -> str:
        """The name under which the snapshot's parameters hold the gain of this kind."""
        return self.name.lower()


KIND_NAMES = {kind.value: kind.parameter_name for kind in EventKind}
_PLAIN = EventKind.HIDE.value  # kinds from 1 to this name an item
_RATING = EventKind.RATING.value


class UserEvent(NamedTuple):
    """One admitted event. `time_us` is the effective time in microseconds since the epoch, decided once at intake."""

    user_id: str
    event_id: str
    kind: int
    item_id: str
    value: float
    time_us: int
    undone_event_id: str = ""

    @property
    def time_s(self) -> float:
        return self.time_us / 1e6


class Admission:
    """Admits the events of one batch at one moment of the clock, as `admit` does, in a fraction of its time."""

    def __init__(self, clock_s: float, window_s: float, history_import: bool) -> None:
        self._clock_s = clock_s
        self._window_s = window_s
        self._history_import = history_import
        self._earliest_s = -math.inf if history_import else clock_s - window_s
        self._latest_s = clock_s + MAX_FUTURE_S
        self._clock_us = round(clock_s * 1e6)

    def admit(
        self,
        user_id: str,
        event_id: str,
        kind: int,
        item_id: str,
        value: float | None,
        time_s: float | None,
        undone_event_id: str,
    ) -> UserEvent:
        """See the function of this name, which is asked where anything is out of the ordinary."""
        if (
            event_id.isascii()
            and 1 <= len(event_id) <= MAX_EVENT_ID_BYTES
            and user_id.isascii()
            and 1 <= len(user_id) <= MAX_ID_BYTES
            and item_id.isascii()
            and 1 <= len(item_id) <= MAX_ID_BYTES
            and 1 <= kind <= _PLAIN
            and not undone_event_id
            and (kind != _RATING if value is None else 0.0 <= value <= (MAX_STARS if kind == _RATING else MAX_VALUE))
            and (time_s is None or self._earliest_s <= time_s <= self._latest_s)
        ):
            time_us = self._clock_us if time_s is None or time_s >= self._clock_s else round(time_s * 1e6)
            return UserEvent._make((user_id, event_id, kind, item_id, 1.0 if value is None else value, time_us, ""))
        return admit(
            user_id=user_id,
            event_id=event_id,
            kind=kind,
            item_id=item_id,
            value=value,
            time_s=time_s,
            undone_event_id=undone_event_id,
            clock_s=self._clock_s,
            window_s=self._window_s,
            history_import=self._history_import,
        )


def admit(
    *,
    user_id: str,
    event_id: str,
    kind: int,
    item_id: str,
    value: float | None,
    time_s: float | None,
    undone_event_id: str,
    clock_s: float,
    window_s: float,
    history_import: bool,
) -> UserEvent:
    """Checks one event against the limits and fixes its effective time, min(its time, `clock_s`).

    Whether the catalogue knows the item is for the caller to check. Raises InvalidArgumentError.
    """
    check_id("event_id", event_id, MAX_EVENT_ID_BYTES)
    check_id("user_id", user_id)
    if kind == EventKind.UNDO:
        check_id("undone_event_id", undone_event_id, MAX_EVENT_ID_BYTES)
        if item_id or value is not None:
            raise InvalidArgumentError("INVALID_UNDO", "an UNDO names undone_event_id and no item_id or value")
    elif kind not in KIND_NAMES:
        raise InvalidArgumentError(
            "INVALID_EVENT_TYPE", f"event type {kind} is not one of 1 to {max(EventKind)}", value=kind
        )
    elif undone_event_id:
        raise InvalidArgumentError("INVALID_UNDO", "only an UNDO may name undone_event_id")
    else:
        check_id("item_id", item_id)
    time_us = _effective_time_us(time_s, clock_s, window_s, history_import)
    return UserEvent(user_id, event_id, kind, item_id, _checked_value(kind, value), time_us, undone_event_id)


def check_id(field: str, value: str, limit: int = MAX_ID_BYTES) -> None:
    """Raises InvalidArgumentError unless the id has 1 to `limit` bytes."""
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= limit:
        raise InvalidArgumentError(
            f"INVALID_{field.upper()}",
            f"{field} must have 1 to {limit} bytes of UTF-8, not {size}",
            value=size,
            limit=limit,
        )


def _checked_value(kind: int, value: float | None) -> float:
    if value is None:
        if kind == EventKind.RATING:
            raise InvalidArgumentError("INVALID_VALUE", "a RATING must set value, the number of stars")
        return 1.0
    limit = MAX_STARS if kind == EventKind.RATING else MAX_VALUE
    if not math.isfinite(value) or not 0.0 <= value <= limit:
        raise InvalidArgumentError(
            "INVALID_VALUE",
            f"value must be finite and from 0 to {limit:g}, not {value}",
            value=value,
            limit=limit,
        )
    return value


def _effective_time_us(time_s: float | None, clock_s: float, window_s: float, history_import: bool) -> int:
    if time_s is None:
        time_s = clock_s
    if time_s > clock_s + MAX_FUTURE_S:
        raise InvalidArgumentError(
            "EVENT_TIME_IN_FUTURE",
            f"event_time is {time_s - clock_s:.0f} s ahead of the server's clock; "
            f"at most {MAX_FUTURE_S:.0f} s are accepted",
            value=time_s,
            limit=MAX_FUTURE_S,
        )
    if time_s < clock_s - window_s and not history_import:
        raise InvalidArgumentError(
            "EVENT_TIME_TOO_OLD",
            f"event_time lies {(clock_s - time_s) / 86_400:.1f} days back; "
            f"the event window is {window_s / 86_400:g} days. Load history with history_import",
            value=time_s,
            limit=window_s,
        )
    return round(min(time_s, clock_s) * 1e6)
