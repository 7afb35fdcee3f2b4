import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_server.popularity import LivePopularity

HALF_LIFE_S = 3 * 86_400.0
ROWS = {"a": 0, "b": 1, "c": 2}


def make(events=()):
    popularity = LivePopularity(HALF_LIFE_S)
    popularity.bind(ROWS, 3)
    for item_id, time_s in events:
        popularity.add(item_id, ROWS.get(item_id), time_s)
    return popularity


def test_counts_are_those_of_the_definition_in_any_order():
    rng = np.random.default_rng(0)
    events = [(str(rng.choice(["a", "b", "c"])), float(rng.uniform(0, 1e8))) for _ in range(200)]
    now_s = 1e8
    wanted = np.zeros(3)
    for item_id, time_s in events:
        wanted[ROWS[item_id]] += 2.0 ** (-(now_s - time_s) / HALF_LIFE_S)
    np.testing.assert_allclose(make(events).counts_at(now_s), wanted, rtol=1e-9)
    np.testing.assert_allclose(make(events[::-1]).counts_at(now_s), wanted, rtol=1e-9)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e7), st.booleans(), st.booleans()), max_size=60),
    st.integers(1, 5),
)
def test_moves_are_laid_out_together_as_they_would_be_one_by_one(moves, most_moved):
    """Whenever the counts are read, and however many moves may wait; d is in no catalogue."""
    popularity, counted = make(), dict[str, float]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heliotrope_server.popularity.MOST_MOVED", most_moved)
        for item_id, time_s, leaves, read in moves:
            after_s = None if leaves else time_s
            popularity.move(item_id, ROWS.get(item_id), counted.pop(item_id, None), after_s)
            if after_s is not None:
                counted[item_id] = after_s
            if read:
                wanted = [2.0 ** ((counted[each] - 1e7) / HALF_LIFE_S) if each in counted else 0.0 for each in ROWS]
                np.testing.assert_allclose(popularity.counts_at(1e7), wanted, rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(popularity.counts_of(np.arange(3), 1e7), wanted, rtol=1e-9, atol=1e-12)


def test_an_event_taken_back_is_not_counted():
    popularity = make([("a", 100.0), ("a", 200.0)])
    popularity.move("a", 0, 200.0, None)
    assert popularity.counts_at(100.0)[0] == pytest.approx(1.0)


def test_two_shards_that_exchange_changes_see_the_same_total():
    first, second = make([("a", 1e6), ("b", 2e6)]), make([("a", 5e6), ("c", 1e9)])
    first.merge_peer(1, *second.changes(0), second.landmark_s, ROWS)
    second.merge_peer(0, *first.changes(0), first.landmark_s, ROWS)
    np.testing.assert_allclose(first.counts_at(1e9), second.counts_at(1e9), rtol=1e-9)

    seen = second.version
    second.add("b", 1, 1e9)
    assert second.changes(seen)[0] == ["b"]
    first.merge_peer(1, *second.changes(seen), second.landmark_s, ROWS)
    np.testing.assert_allclose(first.counts_at(1e9), second.counts_at(1e9), rtol=1e-9)


def test_a_shard_that_restarts_is_not_counted_twice():
    first, second = make(), make([("a", 100.0)])
    first.merge_peer(1, *second.changes(0), second.landmark_s, ROWS)
    first.forget_peer(1, ROWS)
    first.merge_peer(1, *second.changes(0), second.landmark_s, ROWS)
    assert first.counts_at(100.0)[0] == pytest.approx(1.0)


def test_another_half_life_counts_from_now_on():
    popularity = make([("a", 0.0), ("a", 5 * HALF_LIFE_S), ("b", 9 * HALF_LIFE_S)])
    now_s = 10 * HALF_LIFE_S
    before = popularity.counts_at(now_s)
    popularity.change_half_life(10 * HALF_LIFE_S, now_s)
    np.testing.assert_allclose(popularity.counts_at(now_s), before, rtol=1e-9)
    np.testing.assert_allclose(popularity.counts_at(20 * HALF_LIFE_S), before / 2, rtol=1e-9)


def test_counts_outlive_a_change_of_catalogue():
    popularity = make([("a", 100.0), ("gone", 100.0)])
    popularity.bind({"new": 0, "a": 1, "gone": 2}, 3)
    np.testing.assert_allclose(popularity.counts_at(100.0), [0.0, 1.0, 1.0])
