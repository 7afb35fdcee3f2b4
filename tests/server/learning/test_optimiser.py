import numpy as np
import pytest

from heliotrope_server.learning.example import MAX_INVERSE_PROPENSITY, ExampleGroup, make_batch, sigmoid
from heliotrope_server.learning.optimiser import Optimiser, StepSettings, user_factors
from heliotrope_server.learning.weights import Bounds, Weights, distance

FREE = Bounds(matrix_share=1.0, theta_change=10.0)


def groups(seed, *, count=12, size=4, dimension=5, scale=1.0, users=None):
    rng = np.random.default_rng(seed)
    return [
        ExampleGroup(
            f"u{number if users is None else number % users}",
            "s",
            (rng.normal(size=(2, dimension)) * scale).astype(np.float32),
            (rng.normal(size=(size, dimension)) * scale).astype(np.float32),
            rng.uniform(0, 3, size=(size, 1)),
            rng.normal(size=size),
            rng.choice([1.0, 0.5, 0.01], size=size),
            (rng.random(size) < 0.4).astype(np.float64),
        )
        for number in range(count)
    ]


def anchor(seed=9, dimension=5):
    rng = np.random.default_rng(seed)
    return Weights(0, rng.normal(size=(2, dimension, dimension)).astype(np.float32), np.array([0.3]))


def float64(weights):
    return Weights(weights.version, weights.matrices.astype(np.float64), weights.theta)


def test_a_step_goes_down_the_gradient_of_the_weighted_log_loss():
    """Against numeric differentiation of the loss, for examples that need no clipping."""
    batch, start = make_batch(groups(1)), float64(anchor())
    scale, constant = 1000.0, 0.3
    stepped = Optimiser(anchor(), FREE, StepSettings(1e-3, 0.0, 1.0), scale).step(start, batch, constant)

    def loss(matrices, theta):
        scores = batch.scores(Weights(0, matrices, theta)) + constant
        weights = np.minimum(1.0 / batch.propensities, MAX_INVERSE_PROPENSITY)
        return float((weights * (np.logaddexp(0.0, scores) - batch.rewards * scores)).mean())

    for horizon in range(2):
        numeric = np.empty((5, 5))
        for row in range(5):
            for column in range(5):
                moved = start.matrices.copy()
                moved[horizon, row, column] += 1e-5
                back = start.matrices.copy()
                back[horizon, row, column] -= 1e-5
                numeric[row, column] = (loss(moved, start.theta) - loss(back, start.theta)) / 2e-5
        change = (stepped.matrices - start.matrices)[horizon]
        size = 1e-3 * np.linalg.norm(anchor().matrices[horizon])
        gradient = numeric / scale
        expected = -size * gradient / np.sqrt(1.0 + (gradient**2).sum())
        np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-12)
    slope = (loss(start.matrices, start.theta + 1e-5) - loss(start.matrices, start.theta - 1e-5)) / 2e-5
    assert np.sign(stepped.theta - start.theta) == -np.sign(slope)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_no_batch_moves_the_weights_further_than_the_rate_whatever_the_vectors(scale):
    start = float64(anchor())
    optimiser = Optimiser(anchor(), FREE, StepSettings(0.05, 0.0, 1.0), item_scale=1.0)
    stepped = optimiser.step(start, make_batch(groups(2, scale=scale)), 0.0)
    assert 0.0 < distance(stepped, start) <= 0.05 * (1 + 1e-9)


def test_many_steps_stay_inside_the_bounds():
    bounds = Bounds(0.1, 0.05)
    weights = float64(anchor())
    optimiser = Optimiser(anchor(), bounds, StepSettings(1.0, 0.0, 1.0), item_scale=1.0)
    for seed in range(50):
        weights = optimiser.step(weights, make_batch(groups(seed, scale=5.0)), 0.0)
        assert distance(weights, anchor()) <= 0.1
        assert abs(float(weights.theta[0]) - 0.3) <= 0.05 + 1e-12


def test_the_pull_brings_weights_back_when_nothing_is_learned():
    settled = make_batch([group._replace(rewards=sigmoid(group.offsets)) for group in groups(3, scale=0.0)])
    weights = Weights(0, anchor().matrices * 1.1, np.array([0.5]))
    optimiser = Optimiser(anchor(), FREE, StepSettings(0.1, 0.01, 1.0), item_scale=1.0)
    for _ in range(500):
        weights = optimiser.step(weights, settled, 0.0)
    assert distance(weights, anchor()) < 0.001


def test_no_user_makes_up_more_than_the_share():
    users = np.array([0] * 90 + list(range(1, 11)))
    factors = user_factors(users, 0.125)
    assert factors[:90].sum() == pytest.approx(12.5)
    assert (factors[90:] == 1.0).all()


def test_a_batch_of_one_user_moves_the_weights_by_no_more_than_that_users_share():
    extreme = [group._replace(user_id="one", rewards=np.ones(4)) for group in groups(4, count=25, scale=100.0)]
    start = float64(anchor())
    optimiser = Optimiser(anchor(), FREE, StepSettings(0.2, 0.0, 0.125), item_scale=1.0)
    assert 0.0 < distance(optimiser.step(start, make_batch(extreme), 0.0), start) <= 0.2 * 0.125
