import numpy as np
import pytest

from heliotrope_server.learning.learner import Change
from heliotrope_server.learning.weights import Weights, distance
from tests.server.learning.simulation import World, apply


@pytest.mark.parametrize("seed", range(4))
def test_clicks_of_a_hidden_truth_bring_better_weights_and_more_clicks(seed):
    world = World(seed=seed, users=200)
    learner = world.learner()
    decisions = world.run(learner, 1500)
    assert decisions[0].change is Change.PROMOTE
    first = decisions[0].verdict
    assert first.challenger_loss < first.defender_loss
    assert first.users >= 30 and first.examples >= 400
    frozen, learned, best = (world.click_rate(each) for each in (world.anchor, learner.active, world.hidden))
    assert frozen + 0.2 * (best - frozen) < learned <= best
    assert distance(learner.active, world.hidden) < distance(world.anchor, world.hidden)


def test_nothing_is_promoted_where_there_is_nothing_to_learn():
    changes = 0
    for seed in range(6):
        world = World(seed=seed, drift=1e-6)
        world.hidden.theta[:] = world.anchor.theta
        learner = world.learner()
        changes += len(world.run(learner, 1500))
        assert world.click_rate(learner.active) == pytest.approx(world.click_rate(world.anchor), abs=0.003)
    assert changes <= 1


def test_exploration_gives_an_off_policy_loss_and_learning_still_helps():
    world = World(seed=1, users=200)
    learner = world.learner()
    decisions = world.run(learner, 1500, exploration=0.1)
    promoted = decisions[0].verdict
    assert promoted.off_policy is not None
    assert promoted.challenger_off_policy_loss < promoted.defender_off_policy_loss + promoted.off_policy.standard_error
    assert world.click_rate(learner.active) > world.click_rate(world.anchor)


def test_weights_that_turn_out_worse_are_withdrawn():
    world = World(seed=2, users=200)
    learner = world.learner()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=world.anchor.matrices.shape)
    noise *= np.linalg.norm(world.anchor.matrices) / np.linalg.norm(noise)
    bad = Weights(1, (world.anchor.matrices + noise).astype(np.float32), world.anchor.theta)
    learner.adopt(bad, world.anchor)
    for number in range(1500):
        learner.take(world.show(number % 200, learner.active), now_s=1.7e9)
        decision = learner.learn()
        if decision is not None and decision.change is Change.WITHDRAW:
            break
    else:
        raise AssertionError("the bad weights were not withdrawn")
    assert decision.weights is world.anchor
    apply(learner, decision)
    assert learner.active is world.anchor and learner.previous is None


def test_a_shadow_that_is_surely_worse_starts_again():
    world = World(seed=3, users=200)
    learner = world.learner()
    bad = world.anchor.matrices * np.float32(-1.0)
    learner._shadow = Weights(0, bad.astype(np.float64), world.anchor.theta)
    world.run(learner, 200)
    assert learner.discard_count == 1
    assert distance(learner.shadow_weights(), world.anchor) < 0.3


def test_too_few_users_promote_nothing_however_many_examples():
    world = World(seed=4, users=29)
    learner = world.learner(promotion_users=30)
    assert world.run(learner, 1500) == []


def test_one_user_is_held_to_the_quota_and_a_random_part_of_a_list_counts():
    world = World()
    learner = world.learner(user_examples=20)
    for _ in range(10):
        learner.take(world.show(0, world.anchor), now_s=1.7e9)
    assert learner.waiting_count == 20
    assert learner.over_quota_count == 60
    assert learner.learn() is None
