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


async def taught(engine, user):
    """A user whom the server knows well enough to listen to."""
    await engine.record([event(user, f"i{item}", time_s=NOW_S - 5000.0) for item in (11, 13, 15)])


def moved(served, item):
    row = served.rows[item]
    return served.served_vector(row) - served.row_vector(row)


async def test_one_user_moves_a_young_item_by_no_more_than_the_bound(tmp_path):
    served = worlds.catalogue(tmp_path, young=worlds.YOUNG)
    young = worlds.YOUNG
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        for users in range(6):
            before = moved(served, "i4")
            await taught(engine, f"fan{users}")
            await engine.record([event(f"fan{users}", "i4") for _ in range(50)])
            # Z and n change by one user each; shortening to max_norm brings no two vectors farther apart.
            bound = 2.0 * young.step * young.max_query / (users + 1 + young.shrinkage)
            if users == 0:
                bound = young.step * young.max_query / (1 + young.shrinkage)
            change = float(np.linalg.norm(moved(served, "i4") - before))
            assert change <= bound * (1 + 1e-3)
            assert users > 0 or change > 0.1 * bound


async def test_a_burst_of_fake_users_moves_a_young_item_by_no_more_than_max_norm(tmp_path):
    served = worlds.catalogue(tmp_path, young=worlds.YOUNG, live_popularity_weight=0.0)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await taught(engine, "victim")
        interests = engine.profile("victim").interest_vectors(NOW_S, served.parameters)
        query = np.einsum("hd,hde->e", interests, served.snapshot.scoring_matrices)
        before = await score(engine, "i4", "victim")
        for number in range(200):  # all with the taste of the victim, which pays most
            await taught(engine, f"fake{number}")
            await engine.record([event(f"fake{number}", "i4")])
        assert np.linalg.norm(moved(served, "i4")) <= worlds.YOUNG.max_norm * (1 + 1e-3)
        gain = await score(engine, "i4", "victim") - before
        assert 0.0 < gain <= np.linalg.norm(query) * worlds.YOUNG.max_norm * (1 + 1e-3)
        assert not moved(served, "i5").any()  # a known item is not moved at all


async def test_a_burst_of_fake_users_gains_only_the_logarithm_of_its_size(tmp_path):
    served = worlds.catalogue(tmp_path)
    gamma = served.parameters.live_popularity_weight
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        before = await score(engine, "i1")
        await engine.record([event(f"fake{number}", "i1") for number in range(1000)])
        assert await score(engine, "i1") - before == pytest.approx(gamma * np.log1p(1000), rel=1e-4)
