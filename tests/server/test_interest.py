import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.event import KIND_NAMES, EventKind
from heliotrope_server.interest import MAX_EXPONENT, GainTable, InterestSums, interest_vectors, power_of_two

HALF_LIVES_S = (60.0, 86_400.0)
TIMES = st.floats(0.0, 1e8)
GAINS = st.floats(-1.0, 1.0)


@given(st.lists(st.tuples(GAINS, TIMES), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_any_order_gives_the_sums_of_the_definition(events, random):
    vectors = np.random.default_rng(len(events)).normal(size=(len(events), 4)).astype(np.float32)
    order = list(range(len(events)))
    random.shuffle(order)
    sums = InterestSums(2, 4, events[0][1])
    for place in order:
        sums.add(events[place][0], vectors[place], events[place][1], HALF_LIVES_S)

    now_s = max(time_s for _, time_s in events)
    for horizon, half_life_s in enumerate(HALF_LIVES_S):
        weights = np.array([gain * 2.0 ** ((time_s - now_s) / half_life_s) for gain, time_s in events])
        scale = np.abs(weights) @ np.abs(vectors)
        assert np.all(np.abs(sums.sums_at(now_s, HALF_LIVES_S)[horizon] - weights @ vectors) <= 1e-9 * scale + 1e-30)
        assert sums.masses_at(now_s, HALF_LIVES_S)[horizon] == pytest.approx(np.abs(weights).sum(), rel=1e-9)


def test_many_at_once_equals_one_by_one():
    rng = np.random.default_rng(1)
    gains, times = rng.uniform(-1, 1, 50), rng.uniform(0, 1e7, 50)
    vectors = rng.normal(size=(50, 4)).astype(np.float32)
    one_by_one, at_once = InterestSums(2, 4), InterestSums(2, 4)
    for gain, vector, time_s in zip(gains, vectors, times, strict=True):
        one_by_one.add(gain, vector, time_s, HALF_LIVES_S)
    at_once.add_many(gains, vectors, times, HALF_LIVES_S)
    np.testing.assert_allclose(at_once.sums_at(1e7, HALF_LIVES_S), one_by_one.sums_at(1e7, HALF_LIVES_S), rtol=1e-9)


@given(st.lists(st.tuples(st.sampled_from(sorted(KIND_NAMES)[:-1]), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_table_of_gains_says_what_the_parameters_say(events):
    parameters = Parameters(half_lives_s=(1.0,), kappas=(1.0,), max_gain=0.75)
    table = GainTable(parameters, KIND_NAMES)
    expected = [parameters.gain(KIND_NAMES[kind], value) for kind, value in events]
    assert [table.one(kind, value) for kind, value in events] == expected
    kinds, values = zip(*events, strict=True)
    assert table.many(np.array(kinds, dtype=np.uint8), np.array(values)).tolist() == expected
    assert table.one(EventKind.UNDO, 1.0) == 0.0


def test_twenty_years_of_a_one_minute_half_life_stay_finite():
    sums = InterestSums(1, 2)
    for day in range(0, 7300, 10):
        sums.add(1.0, np.ones(2, dtype=np.float32), day * 86_400.0, (60.0,))
    assert np.isfinite(sums.sums).all()
    assert sums.masses_at(7290 * 86_400.0, (60.0,))[0] == pytest.approx(1.0)


def test_an_event_taken_back_leaves_what_was_there():
    sums = InterestSums(2, 3)
    first, second = np.array([1, 2, 3], dtype=np.float32), np.array([5, -1, 0], dtype=np.float32)
    sums.add(0.5, first, 100.0, HALF_LIVES_S)
    before = sums.sums_at(500.0, HALF_LIVES_S)
    sums.add(-0.7, second, 400.0, HALF_LIVES_S)
    sums.add(-0.7, second, 400.0, HALF_LIVES_S, sign=-1)
    np.testing.assert_allclose(sums.sums_at(500.0, HALF_LIVES_S), before, rtol=1e-12)


def test_without_events_the_vector_is_the_prior():
    prior = np.array([0.5, -0.25], dtype=np.float32)
    vectors = interest_vectors(InterestSums(2, 2), prior, 1e9, HALF_LIVES_S, (0.1, 2.0))
    np.testing.assert_array_equal(vectors, [prior, prior])


def test_the_prior_returns_as_the_mass_decays():
    prior, liked = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    sums = InterestSums(1, 2)
    sums.add(1.0, liked, 0.0, (60.0,))
    fresh = interest_vectors(sums, prior, 0.0, (60.0,), (1.0,))
    later = interest_vectors(sums, prior, 600.0, (60.0,), (1.0,))
    np.testing.assert_allclose(fresh, 0.5)
    np.testing.assert_allclose(later, 2**-10 / (1 + 2**-10), rtol=1e-6)


def test_powers_of_two_do_not_raise_at_the_ends():
    assert power_of_two(-1e9) == 0.0
    assert power_of_two(MAX_EXPONENT) == 2.0**256
