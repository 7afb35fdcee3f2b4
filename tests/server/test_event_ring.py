"""The packed ring against a dict of tuples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_server import event_ring
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.event_ring import EventRing
from heliotrope_server.item_numbers import item_id_of

EVENT_IDS = st.sampled_from(["a", "b", "ab", "é", "x" * 128, "\x00", "\x00\x00", "a\x01b", "event-7", "event-77"])
EVENTS = st.builds(
    UserEvent,
    st.just("u"),
    EVENT_IDS,
    st.integers(EventKind.VIEW, EventKind.HIDE),
    st.integers(0, 300).map(lambda number: f"ring-item-{number}"),
    st.floats(0, 100),
    st.integers(-(2**53), 2**53),
    st.just(""),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), EVENTS),
        st.tuples(st.just("pop"), EVENT_IDS),
        st.tuples(st.just("count"), EVENT_IDS),
        st.tuples(st.just("drop"), st.lists(st.integers(0, 9), unique=True)),
        st.tuples(st.just("store"), st.none()),
        st.tuples(st.just("trim"), st.none()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("collide", [False, True])
@given(steps=STEPS)
def test_a_ring_is_a_dict_by_event_id_also_where_all_hashes_collide(collide, steps):
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(event_ring, "_hash", lambda raw: b"\x00" * 4)
        ring, naive, counting = EventRing("u"), dict[str, UserEvent](), set[str]()
        for step, argument in steps:
            if step == "append":
                assert ring.append(argument) == (argument.event_id not in naive)
                naive.setdefault(argument.event_id, argument)
            elif step == "pop":
                popped, expected = ring.pop(argument), naive.pop(argument, None)
                assert popped == (None if expected is None else (expected, argument in counting))
                counting.discard(argument)
            elif step == "count" and argument in naive:
                ring.set_counts(ring.place(argument), argument not in counting)
                counting ^= {argument}
            elif step == "drop":
                ids = list(naive)
                places = [place for place in argument if place < len(ids)]
                ring.drop(places)
                for place in places:
                    counting.discard(ids[place])
                    del naive[ids[place]]
            elif step == "store":
                ring = EventRing.load("u", ring.dump())
            elif step == "trim":
                ring.trim()
            check(ring, naive, counting)


def check(ring, naive, counting):
    events = list(naive.values())
    assert list(ring) == list(naive) and len(ring) == len(naive) and ring.values() == events and ring == naive
    for place, event in enumerate(events):
        assert ring[event.event_id] == event == ring.event(place)
        assert ring.time_us(place) == event.time_us
        assert ring.counts(place) == (event.event_id in counting)
    assert ring.newest_us() == max((event.time_us for event in events), default=0)
    item_ids = set(map(item_id_of, ring.item_numbers().tolist()))
    assert item_ids == {event.item_id for event in events}
    last_by_item = {event.item_id: place for place, event in enumerate(events) if event.event_id in counting}
    for item_id in ["ring-item-0", *item_ids]:
        assert ring.counting_place(item_id) == last_by_item.get(item_id, -1)
    assert ring.counted() == {events[place].item_id: events[place].time_us for place in last_by_item.values()}
    columns = ring.columns(len(events) // 2)
    half = events[len(events) // 2 :]
    assert columns.kinds.tolist() == [event.kind for event in half]
    assert columns.values.tolist() == [event.value for event in half]
    assert columns.times_us.tolist() == [event.time_us for event in half]
    assert "nobody's" not in ring


@given(st.lists(EVENTS, min_size=1, max_size=20, unique_by=lambda event: event.event_id), st.data())
def test_the_last_event_finds_the_one_that_counts_for_its_item(events, data):
    ring, counting = EventRing("u"), dict[str, int]()
    for place, event in enumerate(events):
        ring.append(event)
        assert ring.counting_before_last() == counting.get(event.item_id, -1)
        if event.item_id not in counting and data.draw(st.booleans()):
            ring.count_last()
            counting[event.item_id] = place
        assert ring.counts(place) == (counting.get(event.item_id) == place)


def test_an_event_id_that_its_length_byte_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="byte must be in range"):
        EventRing("u").append(UserEvent("u", "x" * 256, EventKind.CLICK, "i", 1.0, 0))
