import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_server.learning.weights import Bounds, Weights, distance


def weights(seed, *, scale=1.0, horizons=2, dimension=5, version=0):
    rng = np.random.default_rng(seed)
    matrices = (rng.normal(size=(horizons, dimension, dimension)) * scale).astype(np.float32)
    return Weights(version, matrices, np.abs(rng.normal(size=1)) * scale)


def test_scores_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    some = weights(1)
    interests, vectors = rng.normal(size=(7, 2, 5)).astype(np.float32), rng.normal(size=(7, 5)).astype(np.float32)
    features = rng.normal(size=(7, 1))
    expected = [
        sum(v @ a @ x for v, a in zip(interests[n], some.matrices, strict=True)) + features[n] @ some.theta
        for n, x in enumerate(vectors)
    ]
    np.testing.assert_allclose(some.scores(interests, vectors, features), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 30.0), st.floats(0.01, 1.0), st.floats(0.0, 2.0))
def test_projected_weights_are_inside_the_bounds_and_those_inside_stay(seed, scale, share, theta_change):
    anchor, far = weights(seed), weights(seed + 1, scale=scale, version=3)
    bounds = Bounds(share, theta_change)
    near = bounds.project(far, anchor)
    assert near.version == 3
    assert distance(near, anchor) <= share * (1 + 1e-5)  # float32
    assert np.abs(near.theta - anchor.theta).max() <= theta_change + 1e-12
    assert near.theta.min() >= 0.0
    again = bounds.project(near, anchor)
    np.testing.assert_allclose(again.matrices, near.matrices, rtol=1e-5, atol=1e-6)


def test_a_horizon_that_the_snapshot_does_not_use_stays_unused():
    anchor = weights(0)
    anchor.matrices[1] = 0.0
    near = Bounds(0.5, 0.1).project(weights(1), anchor)
    assert not near.matrices[1].any()
    assert distance(near, anchor) == pytest.approx(0.5, rel=1e-4)
