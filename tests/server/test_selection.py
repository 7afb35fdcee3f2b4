"""The best of many scores against sorting them."""

import numpy as np
import pytest

from heliotrope_server.selection import best_places


@pytest.mark.parametrize(("size", "count"), [(0, 3), (5, 3), (5, 5), (5, 9), (1_000, 10), (1_037, 16), (1_000, 300)])
def test_places_are_those_of_a_stable_sort(size, count):
    # Few values, so that many tie.
    scores = np.random.default_rng(size + count).integers(0, 40, size).astype(np.float32)
    expected = scores[np.argsort(-scores, kind="stable")[:count]]
    places = best_places(scores, count)
    np.testing.assert_array_equal(scores[places], expected)
    assert len(set(places)) == min(size, count)


def test_ties_go_to_the_first():
    assert best_places(np.ones(1_000, np.float32), 4).tolist() == [0, 1, 2, 3]


def test_minus_infinity_comes_last():
    scores = np.full(1_000, -np.inf, np.float32)
    scores[[7, 900]] = 1.0, 2.0
    assert best_places(scores, 10)[:2].tolist() == [900, 7]
