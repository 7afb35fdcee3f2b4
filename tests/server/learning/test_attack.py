"""What one user, and what a burst of fake users, can do to the weights. The figures are in docs/decisions/0006."""

import numpy as np
import pytest

from heliotrope_server.learning.weights import distance
from heliotrope_server.settings import LearningSettings
from tests.server.learning.simulation import World, apply

DEFAULTS = LearningSettings()


def top_lists(world, weights, users, count=8):
    return [set(np.argsort(-world.scores(user, weights))[:count].tolist()) for user in users]


def overlap(one, other):
    return float(np.mean([len(a & b) / len(a) for a, b in zip(one, other, strict=True)]))


def test_one_user_moves_nothing_that_is_served_and_the_shadow_by_less_than_the_bound():
    """A single user sends 40 lists of feedback that praise one item and reject all others, all in one window."""
    world = World(seed=0, users=200)
    settings = {"user_examples": DEFAULTS.user_examples}
    learner, honest = world.learner(**settings), World(seed=0, users=200).learner(**settings)
    target = int(np.argmin(world.scores(0, world.anchor)))
    for number in range(320):
        shown = world.show(1 + number % 199, world.anchor)
        if number < 40:
            fake = world.show(0, world.anchor, click=lambda _user, row: float(row == target), user_id="attacker")
            learner.take(fake, now_s=1.7e9)
        for each in (learner, honest):
            each.take(shown, now_s=1.7e9)
            assert each.learn() is None or each is learner
    bound = DEFAULTS.learning_rate * DEFAULTS.user_examples / DEFAULTS.learning_batch
    moved = distance(learner.shadow_weights(), honest.shadow_weights())
    assert learner.over_quota_count >= 40 * 8 - DEFAULTS.user_examples
    assert moved <= bound
    assert learner.active.version == honest.active.version


def test_a_burst_of_fake_users_cannot_leave_the_bound_and_others_see_nearly_the_same():
    """400 fake users, twice the real ones, all click one item wherever it is and nothing else."""
    world = World(seed=1, users=200)
    learner = world.learner(user_examples=DEFAULTS.user_examples)
    target = 7
    for number in range(3000):
        victim = number % 200
        fake = world.show(victim, learner.active, user_id=f"fake{number % 400}")
        shown = fake.vectors.copy()
        shown[0] = world.vectors[target]
        rewards = np.zeros(fake.size)
        rewards[0] = 1.0
        learner.take(fake._replace(vectors=shown, rewards=rewards), now_s=1.7e9 + 1200.0 * number / 400)
        decision = learner.learn()
        if decision is not None:
            apply(learner, decision)
    bound = DEFAULTS.max_matrix_change
    for weights in (learner.active, learner.shadow_weights()):
        assert distance(weights, world.anchor) <= bound
        assert abs(float(weights.theta[0] - world.anchor.theta[0])) <= DEFAULTS.max_theta_change
    before = top_lists(world, world.anchor, range(200))
    after = top_lists(world, learner.active, range(200))
    assert overlap(before, after) > 0.5
    size = np.linalg.norm(world.anchor.matrices)
    for user in range(0, 200, 20):
        change = np.abs(world.scores(user, learner.active) - world.scores(user, world.anchor))
        lengths = np.linalg.norm(world.interests[user]) * np.linalg.norm(world.vectors, axis=1)
        theta = DEFAULTS.max_theta_change * world.features()[:, 0]
        assert (change <= bound * size * lengths + theta + 1e-5).all()


def test_the_bounds_of_the_defaults_are_the_ones_that_are_stated():
    assert DEFAULTS.learning_rate * DEFAULTS.user_examples / DEFAULTS.learning_batch == pytest.approx(0.1)
    assert DEFAULTS.max_matrix_change == 0.3
    assert DEFAULTS.promotion_users == 100
