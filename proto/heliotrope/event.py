"""One thing that one user did, as the caller writes it."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from heliotrope.v1 import event_pb2

EventTypeName = Literal["view", "click", "purchase", "rating", "favorite", "share", "dislike", "hide", "undo"]
Time = datetime | float
"""A moment: an aware datetime, or seconds since the epoch."""


def new_event_id() -> str:
    """A random id of 22 characters (128 bits)."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Event:
    """What a user did with an item.

    `value` is the number of stars for a rating, otherwise a factor on the gain of the type. `time` unset
    means now. The id is made here unless given, so recording the same object twice counts once.
    """

    user_id: str
    item_id: str = ""
    type: EventTypeName = "click"
    value: float | None = None
    time: Time | None = None
    event_id: str = field(default_factory=new_event_id)
    undone_event_id: str = ""

    def to_proto(self) -> event_pb2.Event:
        """The message that is sent. Raises ValueError for an unknown type or a naive datetime."""
        try:
            kind = event_pb2.EventType.Value(f"EVENT_TYPE_{self.type.upper()}")
        except ValueError:
            raise ValueError(f"there is no event type {self.type!r}") from None
        return event_pb2.Event(
            event_id=self.event_id,
            user_id=self.user_id,
            item_id=self.item_id,
            type=kind,
            value=self.value,
            event_time=to_timestamp(self.time),
            undone_event_id=self.undone_event_id,
        )


def to_timestamp(time: Time | None) -> Timestamp | None:
    """A protobuf timestamp. Raises ValueError for a datetime without a time zone: it names no moment."""
    if time is None:
        return None
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError(f"the datetime {time.isoformat()} has no time zone")
        time = time.timestamp()
    seconds = int(time // 1)
    return Timestamp(seconds=seconds, nanos=min(round((time - seconds) * 1e9), 999_999_999))
