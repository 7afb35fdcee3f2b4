import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliotrope_server.errors import DataFolderError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.profile import Applied, Profile
from heliotrope_server.profile_codec import decode_profile, encode_profile
from heliotrope_server.value_checksum import payload_of, with_checksum
from tests.server import worlds

NOW_S = 1.7e9
IDS = [f"e{number}" for number in range(12)]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return worlds.catalogue(tmp_path_factory.mktemp("world"), items=20, dimension=6)


def vectors_of(profile, space, time_s=NOW_S):
    profile.settle(space)
    return profile.interest_vectors(time_s, space.parameters)


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


EVENTS = st.lists(
    st.builds(
        lambda number, kind, item, value, age: UserEvent(
            "u", IDS[number], kind, f"i{item}", value, round((NOW_S - age) * 1e6)
        ),
        st.integers(0, len(IDS) - 1),
        st.integers(EventKind.VIEW, EventKind.HIDE),
        st.integers(0, 19),
        st.floats(0, 5),
        st.floats(0, 5e6),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda event: event.event_id,
)


@given(EVENTS, st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_with_duplicates_equals_the_naive_recomputation(space, events, random):
    arriving = events + random.sample(events, len(events) // 2)
    random.shuffle(arriving)
    profile = Profile("u", space)
    outcomes = [profile.apply(event)[0] for event in arriving]
    assert outcomes.count(Applied.RECORDED) == len(events)
    wanted = worlds.naive_interest_vectors(events, space, NOW_S)
    assert relative_error(vectors_of(profile, space), wanted) < 1e-5


@given(EVENTS, st.sets(st.sampled_from(IDS)), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_undo_may_come_before_or_after_its_event(space, events, undone, random):
    undos = [UserEvent("u", f"undo-{each}", EventKind.UNDO, "", 1.0, round(NOW_S * 1e6), each) for each in undone]
    arriving = events + undos + undos
    random.shuffle(arriving)
    profile = Profile("u", space)
    for event in arriving:
        profile.apply(event)
    standing = [event for event in events if event.event_id not in undone]
    wanted = worlds.naive_interest_vectors(standing, space, NOW_S)
    assert relative_error(vectors_of(profile, space), wanted) < 1e-5


@given(EVENTS, st.sets(st.sampled_from(IDS)), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_vectors_read_at_any_moment_are_those_of_the_events_that_stand(space, events, undone, random):
    """Whether the sums are added to one by one, many at once, or worked out anew."""
    undos = [UserEvent("u", f"undo-{each}", EventKind.UNDO, "", 1.0, round(NOW_S * 1e6), each) for each in undone]
    arriving = events + undos
    random.shuffle(arriving)
    profile, standing, taken_back = Profile("u", space), dict[str, UserEvent](), set[str]()
    for event in arriving:
        profile.apply(event)
        if event.kind == EventKind.UNDO:
            taken_back.add(event.undone_event_id)
            standing.pop(event.undone_event_id, None)
        elif event.event_id not in taken_back:
            standing[event.event_id] = event
        if random.random() < 0.1:
            profile.rest()
        if random.random() < 0.3:
            wanted = worlds.naive_interest_vectors(list(standing.values()), space, NOW_S)
            assert relative_error(vectors_of(profile, space), wanted) < 1e-5
            assert dict(profile.events) == standing


@given(EVENTS, st.sets(st.sampled_from(IDS)), st.booleans(), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_user_counts_by_the_newest_positive_event_that_stands_in_any_order(space, events, undone, stored, random):
    undos = [UserEvent("u", f"undo-{each}", EventKind.UNDO, "", 1.0, round(NOW_S * 1e6), each) for each in undone]
    arriving = events + undos + random.sample(events, len(events) // 2)
    random.shuffle(arriving)
    profile = Profile("u", space)
    counted: dict[str, int | None] = {}

    def positive(event):
        return space.parameters.gain(EventKind(event.kind).parameter_name, event.value) > 0.0

    for event in arriving:
        applied, taken_back = profile.apply(event)
        if stored:
            profile = decode_profile("u", encode_profile(profile), space)
        touched = taken_back if event.kind == EventKind.UNDO else event
        if applied is Applied.RECORDED and touched is not None and positive(touched):
            if touched is event:
                before, counted_now = profile.count(touched)
            else:
                before, counted_now = profile.uncount(touched, space)
            assert before == counted.get(touched.item_id)
            counted[touched.item_id] = counted_now
    wanted: dict[str, int] = {}
    for event in events:
        if event.event_id not in undone and positive(event):
            wanted[event.item_id] = max(wanted.get(event.item_id, 0), event.time_us)
    assert {item: time for item, time in counted.items() if time is not None} == wanted == profile.counted


def test_the_newest_of_the_folded_events_counts_when_the_later_one_is_taken_back(space):
    profile = Profile("u", space)
    for number in range(40):
        event = UserEvent("u", f"f{number}", EventKind.CLICK, f"i{number % 4}", 1.0, number * 1_000_000)
        profile.apply(event)
        profile.count(event)
        profile.fold(8, NOW_S, space)
    standing = [event for event in profile.events.values() if event.item_id == "i3"]
    assert standing
    for event in reversed(standing):
        _, undone = profile.apply(UserEvent("u", f"x{event.event_id}", EventKind.UNDO, "", 1.0, 0, event.event_id))
        profile.uncount(undone, space)
    assert profile.counted["i3"] == profile.folded_items["i3"] > 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_folding_changes_no_interest_vector(space, seed):
    rng = np.random.default_rng(seed)
    events = worlds.random_events(rng, 200, users=1, items=20, now_s=NOW_S, days=100.0)
    profile = Profile("u0", space)
    for event in events:
        profile.apply(event)
        profile.fold(32, NOW_S, space)
    assert profile.folded_count > 100
    assert len(profile.events) + profile.folded_count == 200
    wanted = worlds.naive_interest_vectors(events, space, NOW_S)
    assert relative_error(vectors_of(profile, space), wanted) < 1e-5
    assert 0.0 < profile.folded_share(space.parameters) < 1.0

    for event in events:
        assert profile.apply(event)[0] is Applied.DUPLICATE
    folded = next(event for event in events if event.event_id not in profile.events)
    undo = UserEvent("u0", "undo", EventKind.UNDO, "", 1.0, 1, folded.event_id)
    assert profile.apply(undo)[0] is Applied.UNDO_TOO_OLD


def test_events_inside_the_window_are_never_folded(space):
    profile = Profile("u0", space)
    for event in worlds.random_events(np.random.default_rng(3), 100, users=1, items=20, now_s=NOW_S):
        profile.apply(event)
        profile.fold(8, NOW_S - 7 * worlds.DAY_S, space)
    assert profile.folded_count == 0


def test_a_stored_profile_comes_back_the_same(space):
    rng = np.random.default_rng(4)
    profile = Profile("u0", space)
    for event in worlds.random_events(rng, 120, users=1, items=20, now_s=NOW_S, days=50.0):
        profile.apply(event)
        profile.fold(32, NOW_S, space)
    profile.apply(UserEvent("u0", "x", EventKind.UNDO, "", 1.0, 5, "never-came"))
    profile.declared_interests = ("space opera", "chess")
    profile.declared_pooled = rng.normal(size=(2, 6)).astype(np.float32)
    profile.declared_model_version = "m1"
    profile.lsn = 17
    profile.refresh_prior(space)

    twin = decode_profile("u0", encode_profile(profile), space)
    assert twin.events == profile.events
    assert twin.undone == profile.undone
    assert twin.folded_items == profile.folded_items
    assert twin.counted == profile.counted
    assert (twin.lsn, twin.folded_count, twin.newest_s) == (profile.lsn, profile.folded_count, profile.newest_s)
    assert twin.declared_interests == profile.declared_interests
    np.testing.assert_allclose(vectors_of(twin, space), vectors_of(profile, space), rtol=1e-5)


def test_decay_never_runs_backwards_from_the_newest_event(space):
    profile = Profile("u", space)
    profile.apply(UserEvent("u", "e", EventKind.CLICK, "i1", 1.0, round(NOW_S * 1e6)))
    at_event = vectors_of(profile, space)
    np.testing.assert_array_equal(vectors_of(profile, space, NOW_S - 1e6), at_event)


def test_seen_items_include_folded_ones_and_exclude_undone_ones(space):
    profile = Profile("u0", space)
    events = worlds.random_events(np.random.default_rng(5), 60, users=1, items=20, now_s=NOW_S, days=50.0)
    for event in events:
        profile.apply(event)
        profile.fold(8, NOW_S, space)
    seen = {space.item_ids[row] for row in profile.seen_rows(space.row_of, (space.generation, 0))}
    assert seen == {event.item_id for event in events}

    fresh = Profile("u1", space)
    fresh.apply(UserEvent("u1", "e", EventKind.CLICK, "i1", 1.0, 1))
    fresh.apply(UserEvent("u1", "o", EventKind.UNDO, "", 1.0, 2, "e"))
    fresh.lsn = 2
    assert len(fresh.seen_rows(space.row_of, (space.generation, 0))) == 0


def test_a_profile_that_was_stored_in_format_1_comes_back_the_same(space):
    """The file was written by the version before packed rings: folded, with undos, interests and a segment."""
    folder = Path(__file__).parent / "data"
    blob = (folder / "profile-format-1.msgpack").read_bytes()
    wanted = json.loads((folder / "profile-format-1.json").read_text())
    space.version, version = wanted["folded_version"], space.version
    try:
        for _ in range(2):
            profile = decode_profile("u0", blob, space)
            assert profile.lsn == wanted["lsn"]
            assert profile.events.values() == [UserEvent(*event) for event in wanted["events"]]
            assert profile.undone == wanted["undone"]
            assert profile.counted == wanted["counted"]
            assert (profile.folded_count, profile.folded_items) == (wanted["folded_count"], wanted["folded_items"])
            assert profile.segments == tuple(wanted["segments"])
            assert profile.declared_interests == tuple(wanted["declared_interests"])
            np.testing.assert_allclose(vectors_of(profile, space), wanted["interest_vectors"], rtol=1e-5)
            blob = encode_profile(profile)
    finally:
        space.version = version


def test_a_profile_at_rest_with_twenty_events_takes_at_most_1400_bytes(space):
    profiles = {}
    tracemalloc.start()
    try:
        for user in range(200):
            profile = profiles[f"user-{user:06}"] = Profile(f"user-{user:06}", space)
            for number in range(20):
                event_id, item_id = f"history-{20 * user + number:08}", f"i{number}"
                profile.apply(UserEvent(profile.user_id, event_id, EventKind.CLICK, item_id, 1.0, 10**15 + number))
                profile.count(profile.events[event_id])
            profile.settle(space)
            profile.rest()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / len(profiles) <= 1_400


def test_a_profile_of_a_newer_format_is_refused(space):
    payload = payload_of(b"u", encode_profile(Profile("u", space)))
    blob = with_checksum(b"u", payload.replace(b"\x93\x03", b"\x93\x04", 1))
    with pytest.raises(DataFolderError, match="format version 4 and key id 0; this server reads 1 to 3 and 0"):
        decode_profile("u", blob, space)
