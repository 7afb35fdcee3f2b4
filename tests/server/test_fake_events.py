"""Attacks by fake events, and the bounds that the formulas promise."""

import itertools

import numpy as np
import pytest

from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from tests.server import worlds

NOW_S = 1.7e9
NUMBERS = itertools.count()


def clock():
    return NOW_S


def event(user, item, *, kind=EventKind.CLICK, time_s=NOW_S, undone=""):
    number = next(NUMBERS)
    return UserEvent(user, f"e{number}", kind, item, 1.0, round(time_s * 1e6), undone)


async def score(engine, item, user="bystander"):
    answer = (await engine.recommend(Question(user, 200, include_seen=True, time_s=NOW_S))).result
    return dict(zip(answer.item_ids, answer.scores, strict=True))[item]


async def test_one_user_counts_once_however_many_events_they_send(tmp_path):
    served = worlds.catalogue(tmp_path)
    gamma = served.parameters.live_popularity_weight
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([event(f"fan{number}", "i1") for number in range(3)])
        before = await score(engine, "i1")
        # Different moments, ids and kinds; folded ones among them.
        times = np.random.default_rng(0).uniform(NOW_S - 6 * worlds.DAY_S, NOW_S, size=1000)
        await engine.record([event("fake", "i1", time_s=time_s) for time_s in times])
        assert await score(engine, "i1") - before <= gamma * (np.log1p(3 + 1) - np.log1p(3)) * (1 + 1e-5)
        newest = 2.0 ** ((times.max() - NOW_S) / served.parameters.popularity_half_life_s)
        assert engine.popularity.counts_at(NOW_S)[served.rows["i1"]] == pytest.approx(3 + newest)


async def test_undo_and_deletion_are_no_way_to_count_twice(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        for _ in range(5):
            click = event("fake", "i1")
            await engine.record([click, event("fake", "", kind=EventKind.UNDO, undone=click.event_id)])
        assert engine.popularity.counts_at(NOW_S)[served.rows["i1"]] == pytest.approx(0.0, abs=1e-9)
        for _ in range(5):
            await engine.record([event("fake", "i1"), event("fake", "i2")])
            await engine.forget("fake")
        np.testing.assert_allclose(engine.popularity.counts_at(NOW_S), 0.0, atol=1e-9)


async def test_a_burst_of_fake_users_gains_only_the_logarithm_of_its_size(tmp_path):
    served = worlds.catalogue(tmp_path)
    gamma = served.parameters.live_popularity_weight
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        before = await score(engine, "i1")
        await engine.record([event(f"fake{number}", "i1") for number in range(1000)])
        assert await score(engine, "i1") - before == pytest.approx(gamma * np.log1p(1000), rel=1e-4)
