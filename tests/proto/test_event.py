from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope import Event
from heliotrope.event import to_timestamp
from heliotrope.v1 import event_pb2


def test_every_type_of_the_contract_has_a_name() -> None:
    for name in event_pb2.EventType.keys()[1:]:
        kind = name.removeprefix("EVENT_TYPE_").lower()
        assert Event("u", "i", kind).to_proto().type == event_pb2.EventType.Value(name)  # type: ignore[arg-type]


def test_what_is_not_given_is_not_sent() -> None:
    message = Event("u", "i").to_proto()
    assert not message.HasField("value") and not message.HasField("event_time")
    assert Event("u", "i", value=0.0).to_proto().HasField("value")


def test_ids_differ_and_stay() -> None:
    first, second = Event("u", "i"), Event("u", "i")
    assert first.event_id != second.event_id
    assert first.to_proto().event_id == first.to_proto().event_id == first.event_id


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no event type 'applaud'"):
        Event("u", "i", "applaud").to_proto()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no time zone"):
        Event("u", "i", time=datetime(2026, 1, 1)).to_proto()


@given(st.floats(0, 4e9))
def test_times_keep_their_microseconds(seconds: float) -> None:
    moment = to_timestamp(seconds)
    assert moment is not None
    assert moment.seconds + moment.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)


def test_an_aware_datetime_is_a_moment() -> None:
    moment = to_timestamp(datetime(1970, 1, 2, tzinfo=UTC))
    assert moment is not None and (moment.seconds, moment.nanos) == (86_400, 0)
