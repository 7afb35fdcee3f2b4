import math

import numpy as np
import pytest

from heliotrope_server.learning.base_rate import BaseRate
from heliotrope_server.learning.example import ExampleGroup, log_losses, make_batch, sigmoid
from heliotrope_server.learning.quota import UserQuota
from heliotrope_server.learning.validation import Comparison, in_place
from heliotrope_server.learning.weights import Weights
from tests.server.learning.simulation import World


def group(user, rewards, propensities=None):
    size = len(rewards)
    zeros = np.zeros((size, 1), dtype=np.float32)
    drawn = np.ones(size) if propensities is None else np.array(propensities)
    return ExampleGroup(
        user, "s", zeros[:1], zeros, zeros.astype(np.float64), np.zeros(size), drawn, np.array(rewards, dtype=float)
    )


def compared(groups, defender, challenger):
    comparison = Comparison()
    batch = make_batch(groups)
    comparison.add(
        batch, log_losses(defender, batch.rewards), log_losses(challenger, batch.rewards), defender, challenger
    )
    return comparison.verdict()


def test_the_error_is_that_of_users_not_of_examples():
    rng = np.random.default_rng(0)
    groups = [group(f"u{number}", rng.integers(0, 2, size=5)) for number in range(20)]
    defender, challenger = rng.normal(size=100), rng.normal(size=100)
    verdict = compared(groups, defender, challenger)
    rewards = np.concatenate([each.rewards for each in groups])
    gains = log_losses(defender, rewards) - log_losses(challenger, rewards)
    by_user = (gains - gains.mean()).reshape(20, 5).sum(axis=1)
    assert verdict.gain.mean == pytest.approx(gains.mean())
    assert verdict.gain.standard_error == pytest.approx(math.sqrt((by_user**2).sum() * 20 / 19) / 100)
    assert (verdict.examples, verdict.users) == (100, 20)
    # The same examples from twice as loud users: no more certain than before.
    doubled = compared([*groups, *groups], np.tile(defender, 2), np.tile(challenger, 2))
    assert doubled.gain.standard_error == pytest.approx(verdict.gain.standard_error)


def test_one_user_never_convinces():
    verdict = compared([group("only", [1.0] * 50)], np.full(50, -5.0), np.full(50, 5.0))
    assert verdict.gain.mean > 4.0
    assert not verdict.better(0.0, 1.0)


def test_there_is_no_value_without_exploration():
    verdict = compared([group(f"u{n}", [1.0, 0.0]) for n in range(200)], np.zeros(400), np.zeros(400))
    assert verdict.value is None
    assert math.isnan(verdict.defender_value)


def test_the_value_of_an_order_is_found_from_answers_of_another():
    """Two places are drawn at random among two items; item quality is known, so the true value of each order is too."""
    rng = np.random.default_rng(1)
    quality = {1.0: 0.8, 0.0: 0.2}
    groups, defender, challenger = [], [], []
    for number in range(2000):
        shown = [1.0, 0.0] if rng.random() < 0.5 else [0.0, 1.0]  # by their true score
        examined = [1.0, 0.4]  # the second place is looked at less often
        rewards = [float(rng.random() < quality[item] * look) for item, look in zip(shown, examined, strict=True)]
        groups.append(group(f"u{number % 400}", rewards, [0.5, 0.5]))
        challenger += shown
        defender += [-item for item in shown]
    verdict = compared(groups, np.array(defender), np.array(challenger))
    assert verdict.value is not None
    second = 1.0 / np.log2(3.0)
    assert verdict.challenger_value == pytest.approx((0.8 + 0.2 * 0.4 * second) / (1.0 + second), abs=0.03)
    assert verdict.defender_value == pytest.approx((0.2 + 0.8 * 0.4 * second) / (1.0 + second), abs=0.03)
    assert 0.0 < verdict.value.standard_error < 0.05


def test_a_lower_value_stands_in_the_way_of_a_lower_loss():
    """The challenger is better calibrated, but would put the wrong one of two items first."""
    rng = np.random.default_rng(3)
    groups, defender, challenger = [], [], []
    for number in range(1000):
        good_first = rng.random() < 0.5
        chances = [0.8, 0.2] if good_first else [0.2, 0.8]
        groups.append(group(f"u{number % 200}", [float(rng.random() < chance) for chance in chances], [0.5, 0.5]))
        defender += [3.0, 2.9] if good_first else [2.9, 3.0]
        challenger += [-0.1, 0.1] if good_first else [0.1, -0.1]
    verdict = compared(groups, np.array(defender), np.array(challenger))
    assert verdict.gain.mean > 10 * verdict.gain.standard_error
    assert verdict.value is not None and verdict.value.mean < -3 * verdict.value.standard_error
    assert not verdict.better(0.0, 2.5)
    assert verdict._replace(value=None).better(0.0, 2.5)


def test_places_that_an_order_keeps():
    assert in_place(np.array([3.0, 2.0, 1.0])).tolist() == [1, 1, 1]
    assert in_place(np.array([1.0, 2.0, 3.0])).tolist() == [0, 1, 0]


def test_the_base_rate_is_the_best_constant_of_the_recent_past():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=4000)
    rewards = (rng.random(4000) < sigmoid(scores - 1.7)).astype(float)
    rate = BaseRate()
    for start in range(0, 4000, 64):
        rate.add(scores[start : start + 64], rewards[start : start + 64])
    grid = np.linspace(-3, 0, 3001)
    recent = slice(4000 - 2048, 4000)
    losses = [log_losses(scores[recent] + constant, rewards[recent]).mean() for constant in grid]
    assert rate.constant == pytest.approx(grid[int(np.argmin(losses))], abs=0.02)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_the_base_rate_stays_finite_when_all_rewards_are_equal(reward):
    rate = BaseRate()
    for _ in range(100):
        rate.add(np.zeros(64), np.full(64, reward))
    assert abs(rate.constant) <= 10.0


def test_a_quota_counts_by_user_and_forgets_with_the_window():
    quota = UserQuota(5, 60.0)
    assert [quota.take("a", 3, 0.0), quota.take("a", 3, 10.0), quota.take("a", 3, 20.0)] == [3, 2, 0]
    assert quota.take("b", 9, 20.0) == 5
    assert quota.take("a", 3, 61.0) == 3


def test_snapshot_weights_score_as_the_world_says():
    world = World()
    shown = world.show(3, world.anchor)
    batch = make_batch([shown])
    best = np.sort(world.scores(3, world.anchor))[::-1][:8]
    np.testing.assert_allclose(batch.scores(world.anchor), best, rtol=1e-5)
    assert isinstance(world.hidden, Weights)
