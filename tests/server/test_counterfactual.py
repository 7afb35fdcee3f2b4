"""A profile without an event is the profile to which that event never came."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_server.counterfactual import without
from heliotrope_server.neighbours import suggestions
from heliotrope_server.profile import Profile
from tests.server import worlds
from tests.server.test_explanation import DIMENSION, HAPPENINGS, ITEMS, NOW_S, events_of


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return worlds.catalogue(
        tmp_path_factory.mktemp("counter"), items=ITEMS, dimension=DIMENSION, neighbour_weight=0.8, vector_scale=0.5
    )


def profile_of(events, served) -> Profile:
    profile = Profile("u", served)
    for event in events:
        profile.apply(event)
        if served.gains.one(event.kind, event.value) > 0.0:
            profile.count(event)
    profile.settle(served)
    return profile


def said(profile, served):
    found = suggestions(profile, served)
    return {} if found is None else dict(zip(found.rows.tolist(), found.gains.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(HAPPENINGS.filter(bool), st.data())
def test_nothing_of_the_event_is_left(served, happenings, data):
    events = events_of(happenings)
    place = data.draw(st.integers(0, len(events) - 1))
    # Also asked as of a moment before the newest events, where that event is what the others decay to.
    read_s = NOW_S - data.draw(st.sampled_from([0.0, 30 * 86_400.0]))
    profile = profile_of(events, served)
    before = profile.events.dump()
    found = without(profile, events[place].event_id, served)
    never = profile_of(events[:place] + events[place + 1 :], served)
    parameters = served.parameters
    np.testing.assert_allclose(
        found.profile.interest_vectors(read_s, parameters), never.interest_vectors(read_s, parameters), atol=1e-6
    )
    assert found.profile.counted == never.counted
    assert said(found.profile, served) == pytest.approx(said(never, served))
    version = served.generation, served.revision
    assert set(found.profile.seen_rows(served.rows_of, version)) == set(never.seen_rows(served.rows_of, version))
    assert found.profile.newest_s == never.newest_s
    item = events[place].item_id
    assert (found.item_id, found.counted_us, found.counts_us) == (
        item,
        profile.counted.get(item),
        never.counted.get(item),
    )
    assert profile.events.dump() == before and profile.counted == profile_of(events, served).counted


def test_an_event_that_is_not_there_is_an_error(served):
    with pytest.raises(KeyError, match="nothing"):
        without(profile_of([], served), "nothing", served)
