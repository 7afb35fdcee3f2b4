import math

import numpy as np
import pytest

from heliotrope_bench.interval import Bootstrap, verdict


def test_pairs_are_closer_than_their_parts() -> None:
    generator = np.random.default_rng(1)
    ease = generator.normal(size=(400, 1))
    ours, theirs = ease + 0.1, ease + generator.normal(scale=0.1, size=(400, 1))
    bootstrap = Bootstrap(np.arange(400))
    mean, low, high = bootstrap.difference(ours, theirs)
    assert low[0] < mean[0] < high[0]
    spread = float((ours - theirs).std() / math.sqrt(400))
    assert (high[0] - low[0]) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    alone = bootstrap.interval(ours)
    assert alone[1][0] - alone[0][0] > 5 * (high[0] - low[0])


def test_targets_of_a_user_are_drawn_together() -> None:
    """Twenty equal targets a user say no more than one."""
    values = np.random.default_rng(2).normal(size=(100, 1))
    one = Bootstrap(np.arange(100)).interval(values)
    twenty = Bootstrap(np.repeat(np.arange(100), 20)).interval(np.repeat(values, 20, axis=0))
    np.testing.assert_allclose(one, twenty)


def test_a_model_is_even_with_itself() -> None:
    values = np.random.default_rng(3).normal(size=(50, 2))
    mean, low, high = Bootstrap(np.arange(50)).difference(values, values)
    assert not mean.any() and not low.any() and not high.any()
    assert verdict(0.0, 0.0) == "even" and verdict(0.1, 0.2) == "better" and verdict(-0.2, -0.1) == "worse"


def test_no_targets_have_no_interval() -> None:
    low, high = Bootstrap(np.empty(0, np.int64)).interval(np.empty((0, 2)))
    assert low.tolist() == high.tolist() == [0.0, 0.0]
