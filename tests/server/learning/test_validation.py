import math

import numpy as np
import pytest

from heliotrope_server.learning.base_rate import BaseRate
from heliotrope_server.learning.example import ExampleGroup, log_losses, make_batch, sigmoid
from heliotrope_server.learning.quota import UserQuota
from heliotrope_server.learning.validation import Comparison
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
    comparison.add(batch, log_losses(defender, batch.rewards), log_losses(challenger, batch.rewards))
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


def test_there_is_no_off_policy_loss_without_exploration():
    verdict = compared([group(f"u{n}", [1.0, 0.0]) for n in range(200)], np.zeros(400), np.zeros(400))
    assert verdict.off_policy is None
    assert math.isnan(verdict.defender_off_policy_loss)


def drawn_lists(rng, count=6000, share=0.1, pool=5):
    """One place each: the favourite with 1 - share, else one of `pool` others. Returns groups and which were drawn."""
    groups, explored = [], []
    for number in range(count):
        drawn = bool(rng.random() < share)
        chance, propensity = (0.9, share / pool) if drawn else (0.5, 1.0 - share)
        groups.append(group(f"u{number % 300}", [float(rng.random() < chance)], [propensity]))
        explored.append(drawn)
    return groups, np.array(explored)


def test_the_off_policy_loss_is_that_of_a_world_in_which_all_is_shown_alike():
    """The favourite is liked by half, the five others by nine of ten: the mean loss over the six is known."""
    groups, explored = drawn_lists(np.random.default_rng(1))
    ignorant, informed = np.zeros(len(groups)), np.where(explored, np.log(9.0), 0.0)
    verdict = compared(groups, ignorant, informed)
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert verdict.defender_off_policy_loss == pytest.approx(np.log(2.0), abs=1e-6)
    assert verdict.challenger_off_policy_loss == pytest.approx((np.log(2.0) + 5 * entropy) / 6, abs=0.03)
    assert verdict.off_policy is not None and 0.0 < verdict.off_policy.standard_error < 0.05
    # On what was shown, the same knowledge is worth nine times less.
    assert verdict.gain.mean < verdict.off_policy.mean / 5


def test_a_higher_off_policy_loss_stands_in_the_way_of_a_lower_loss():
    """The challenger knows the favourite better and is wrong about everything that is rarely shown."""
    rng = np.random.default_rng(3)
    groups, explored = drawn_lists(rng, share=0.02)
    rewards = np.array([each.rewards[0] for each in groups])
    hint = np.where(rewards > 0.5, 0.3, -0.3)
    verdict = compared(groups, np.zeros(len(groups)), np.where(explored, -1.0, hint))
    assert verdict._replace(off_policy=None).better(0.0, 2.5)
    assert verdict.off_policy is not None and verdict.off_policy.mean < -verdict.off_policy.standard_error
    assert not verdict.better(0.0, 2.5)


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
