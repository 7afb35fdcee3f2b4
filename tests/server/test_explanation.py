"""Contributions sum to the score, and each is what its definition says, held to formulas that know no arrays."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_indexer.search import kernel_problem
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.explanation import (
    EVENT,
    FOLDED_EVENTS,
    FRESHNESS,
    INTERCEPT,
    ITEM_BIAS,
    LIVE_POPULARITY,
    OTHER_EVENTS,
    PRIOR,
    Asked,
    Explainer,
)
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import suggestions
from heliotrope_server.profile import Profile
from tests.server import worlds

NOW_S = 1.7e9
ITEMS, DIMENSION = 120, 21
RING = 8

HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from([kind for kind in EventKind if kind is not EventKind.UNDO]),
        st.integers(0, ITEMS + 5),
        st.floats(0.0, 5.0),
        st.integers(0, 60 * 86_400),
    ),
    max_size=24,
)


class World(NamedTuple):
    served: object
    explainers: dict[bool, Explainer]
    """By whether it is compiled."""

    def explain(self, compiled, profile, rows, live, freshness, most_named=3):
        matrices = self.served.snapshot.scoring_matrices.reshape(-1, DIMENSION)
        asked = Asked(profile, rows, NOW_S)
        return self.explainers[compiled].explain([asked], matrices, live, freshness, most_named)[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    served = worlds.catalogue(
        tmp_path_factory.mktemp("explained"), items=ITEMS, dimension=DIMENSION, neighbour_weight=0.8, vector_scale=0.5
    )
    pooled = np.linspace(-1.0, 1.0, DIMENSION, dtype=np.float32)
    # An item that the snapshot does not hold, and one that was replaced.
    for number, bias in ((ITEMS + 2, 0.3), (5, -0.2)):
        served.upsert(DeltaItem(CatalogItem(f"i{number}", "new"), pooled, pooled, bias, served.version, "none"))
    ways = (False, True) if kernel_problem() is None else (False,)
    return World(served, {compiled: Explainer(served, compiled=compiled) for compiled in ways})


def events_of(happenings) -> list[UserEvent]:
    """With times that are all different, so that the newest of an item is one."""
    return [
        UserEvent("u", f"e{number}", int(kind), f"i{item}", value, round((NOW_S - age) * 1e6) + number)
        for number, (kind, item, value, age) in enumerate(happenings)
    ]


def profile_of(events, served) -> Profile:
    profile = Profile("u", served)
    for event in events:
        profile.apply(event)
        if served.gains.one(event.kind, event.value) > 0.0:
            profile.count(event)
    profile.fold(RING, NOW_S + 1.0, served)
    profile.settle(served)
    return profile


def taste(events, chosen, served, row) -> float:
    """What some of the events add to a row's score by taste."""
    parameters, added = served.parameters, 0.0
    x_i = served.row_vector(row).astype(np.float64)
    for horizon, (half_life_s, kappa) in enumerate(zip(parameters.half_lives_s, parameters.kappas, strict=True)):
        matrix = served.snapshot.scoring_matrices[horizon].astype(np.float64)
        mass, total = kappa, np.zeros(DIMENSION)
        for event in events:
            vector = served.vector(event.item_id)
            if vector is None:
                continue
            gain = parameters.gain(EventKind(event.kind).parameter_name, event.value)
            weight = gain * 2.0 ** (-(NOW_S - event.time_s) / half_life_s)
            mass += abs(weight)
            if event in chosen:
                total += weight * vector.astype(np.float64)
        added += total / mass @ matrix @ x_i
    return added


def said(events, served, row) -> dict[str, float]:
    """What the newest liked items say of a row, by the event that is the newest positive one on each."""
    newest: dict[str, UserEvent] = {}
    for event in events:
        if served.parameters.gain(EventKind(event.kind).parameter_name, event.value) > 0.0 and (
            event.item_id not in newest or event.time_us > newest[event.item_id].time_us
        ):
            newest[event.item_id] = event
    speaking = sorted(newest.values(), key=lambda event: (event.time_us, event.item_id), reverse=True)
    found, table = {}, served.snapshot.neighbours
    target = served.snapshot.row_of(served.item_ids[row])
    for event in speaking[: worlds.NEIGHBOUR_ITEMS]:
        source = served.snapshot.row_of(event.item_id)
        if source is not None:
            strengths = table.strengths[source][table.rows[source] == target]
            found[event.event_id] = served.parameters.neighbours.weight * float(strengths.sum())
    return found


@settings(max_examples=80, deadline=None)
@given(HAPPENINGS, st.integers(0, 2**31), st.integers(1, 30))
def test_every_contribution_is_what_it_says_and_together_they_are_the_score(world, happenings, seed, most_named):
    served = world.served
    events, rng = events_of(happenings), np.random.default_rng(seed)
    profile = profile_of(events, served)
    in_ring = {event.event_id for event in profile.events.values()}
    counts = rng.exponential(3.0, served.size) * (rng.random(served.size) < 0.3)
    live, rows = live_view(served, counts), rng.choice(served.size, 12, replace=False)
    freshness = {int(rows[0]): 0.25}
    for compiled in world.explainers:
        explained = world.explain(compiled, profile, rows, live, freshness, most_named)
        check(world, events, in_ring, rows, counts, freshness, explained, most_named)


def check(world, events, in_ring, rows, counts, freshness, explained, most_named):
    served = world.served
    v = worlds.naive_interest_vectors(events, served, NOW_S)
    for row, parts in zip(rows.tolist(), explained, strict=True):
        spoken = said(events, served, row)
        query = np.einsum("hd,hde->e", v, served.snapshot.scoring_matrices.astype(np.float64))
        score = query @ served.row_vector(row) + served.bias(row) + served.parameters.intercept + sum(spoken.values())
        score += served.parameters.live_popularity_weight * np.log1p(counts[row]) + freshness.get(row, 0.0)
        assert sum(part.value for part in parts) == pytest.approx(score, abs=1e-5)
        by_kind = {part.kind: part.value for part in parts if part.kind != EVENT}
        assert by_kind[ITEM_BIAS] == served.bias(row)
        assert by_kind[INTERCEPT] == served.parameters.intercept
        assert by_kind[FRESHNESS] == freshness.get(row, 0.0)
        assert by_kind[LIVE_POPULARITY] == pytest.approx(0.3 * np.log1p(counts[row]), abs=1e-6)
        by_taste = float(query @ served.row_vector(row))
        assert by_kind[PRIOR] == pytest.approx(by_taste - taste(events, events, served, row), abs=1e-5)
        folded = [event for event in events if event.event_id not in in_ring]
        assert (FOLDED_EVENTS in by_kind) == bool(folded)
        if folded:
            whole = taste(events, folded, served, row) + sum(spoken.get(event.event_id, 0.0) for event in folded)
            assert by_kind[FOLDED_EVENTS] == pytest.approx(whole, abs=1e-5)
        shares = {
            event.event_id: taste(events, [event], served, row) + spoken.get(event.event_id, 0.0)
            for event in events
            if event.event_id in in_ring
        }
        named = {part.event_id: part.value for part in parts if part.kind == EVENT}
        assert len(named) <= most_named
        for event_id, value in named.items():
            assert value == pytest.approx(shares.pop(event_id), abs=1e-5)
        others = by_kind.get(OTHER_EVENTS, 0.0)
        assert others == pytest.approx(sum(shares.values()), abs=1e-5)
        if named and shares:
            assert max(map(abs, shares.values())) <= min(map(abs, named.values())) + 1e-5
        sizes = [abs(part.value) for part in parts if part.kind == EVENT]
        assert sizes == sorted(sizes, reverse=True)


def test_of_a_stranger_there_is_the_prior_and_what_the_item_is(world):
    live = live_view(world.served, np.zeros(world.served.size))
    for compiled in world.explainers:
        (parts,) = world.explain(compiled, None, np.array([3]), live, {})
        assert [part.kind for part in parts] == [PRIOR, ITEM_BIAS, LIVE_POPULARITY, INTERCEPT]


@pytest.mark.skipif(kernel_problem() is not None, reason="there is no compiled kernel to compare")
@pytest.mark.parametrize("newest", [0, 1])
def test_with_and_without_a_kernel_the_shares_are_the_same_where_times_are(world, newest):
    """More liked items than speak, all at one time: which do is told by their ids, as suggestions have it."""
    served, count = world.served, worlds.NEIGHBOUR_ITEMS + 8
    liked = [row for row in range(ITEMS) if served.snapshot.neighbours.rows[row].min() >= 0][:count]
    times = [round(NOW_S * 1e6) - 5 + newest * (number % 2) for number in range(count)]
    profile = Profile("u", served)
    for row, time_us in zip(liked, times, strict=True):
        event = UserEvent("u", f"e{row}", EventKind.CLICK, f"i{row}", 1.0, time_us)
        profile.apply(event)
        profile.count(event)
    profile.settle(served)
    live, rows = live_view(served, np.zeros(served.size)), np.arange(ITEMS)
    plain, compiled = (world.explain(way, profile, rows, live, {}, 50) for way in (False, True))
    gains = suggestions(profile, served).of_rows(rows)
    assert gains.any()
    query = np.einsum("hd,hde->e", profile.interest_vectors(NOW_S, served.parameters), served.snapshot.scoring_matrices)
    for row, (ours, theirs) in enumerate(zip(plain, compiled, strict=True)):
        by_event = [{part.event_id: part.value for part in parts if part.kind == EVENT} for parts in (ours, theirs)]
        assert by_event[0] == pytest.approx(by_event[1], abs=1e-6)
        score = query @ served.row_vector(row) + served.bias(row) + served.parameters.intercept + gains[row]
        assert sum(part.value for part in theirs) == pytest.approx(score, abs=1e-5)
