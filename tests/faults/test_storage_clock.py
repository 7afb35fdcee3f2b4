"""Wall clocks that jump: what the engine holds with any clock, and what the steady clock keeps from it."""

import asyncio
import math

import numpy as np
import pytest

from heliotrope_server.answerer import Question
from heliotrope_server.event import Admission, EventKind
from heliotrope_server.profile import Applied
from heliotrope_server.steady_clock import PATIENCE_S, SteadyClock
from tests.server import worlds

NOW_S = 1.7e9
DAY_S = 86_400.0
USERS = [f"u{number}" for number in range(5)]
JUMPS_S = [0.0, 3600.0, -3600.0, 2 * DAY_S, -400 * DAY_S, 365 * DAY_S, -0.5, 40_000 * DAY_S, -19_000 * DAY_S, 0.0]


class Clocks:
    """A wall clock that can be set, beside the time that really passes."""

    def __init__(self):
        self.since_boot_s = 1000.0
        self.wrong_by_s = 0.0

    def wall(self):
        return NOW_S + self.since_boot_s + self.wrong_by_s

    def since_boot(self):
        return self.since_boot_s

    def steady(self):
        return SteadyClock(self.wall, self.since_boot)


async def record(engine, events):
    """As the servicer records events that name no time of their own."""
    admit = Admission(engine.now_s(), engine.settings.event_window_s, history_import=False).admit
    return await engine.record(
        [admit(one.user_id, one.event_id, one.kind, one.item_id, one.value, None, "") for one in events]
    )


async def shown(engine):
    answers = {user: (await engine.recommend(Question(user, 20, explain=True))).result for user in USERS}
    return {user: (answer.item_ids, answer.scores) for user, answer in answers.items()}


@pytest.mark.parametrize("seed", range(4))
async def test_events_of_a_clock_that_jumps_are_kept_once_and_answered(tmp_path, seed):
    rng = np.random.default_rng(seed)
    events = worlds.random_events(rng, 40 * len(JUMPS_S), now_s=NOW_S)
    clocks = Clocks()
    world = {"wall_clock": clocks.wall, "ring_size": 16, "event_window_s": DAY_S}
    served = worlds.catalogue(tmp_path, seed=seed, young=worlds.YOUNG)
    order = rng.permutation(len(JUMPS_S))
    async with worlds.engine(tmp_path, served, crash=True, **world) as engine:
        for place, jump in enumerate(order):
            clocks.wrong_by_s = JUMPS_S[jump]
            batch = events[40 * place : 40 * place + 40]
            fates, lsn = await record(engine, batch)
            assert {fate.applied for fate in fates} == {Applied.RECORDED}
            again, _ = await record(engine, batch)
            assert {fate.applied for fate in again} == {Applied.DUPLICATE}
            for user in USERS:
                answer = (await engine.recommend(Question(user, 20, version_token=engine.clock.token(lsn)))).result
                assert len(answer.item_ids) == 20
                assert all(math.isfinite(score) for score in answer.scores)
            if place == 5:
                await engine.checkpoint()
        clocks.wrong_by_s = 0.0
        counts = {user: engine.profile(user).event_count for user in USERS}
        wanted = await shown(engine)
    assert sum(counts.values()) == len(events)
    async with worlds.engine(tmp_path, served, **world) as engine:
        assert {user: engine.profile(user).event_count for user in USERS} == counts
        found = await shown(engine)
        for user in USERS:
            np.testing.assert_allclose(sorted(found[user][1]), sorted(wanted[user][1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jump_s", [365 * DAY_S, -365 * DAY_S, 3 * 3600.0, -3 * 3600.0])
async def test_a_jump_that_does_not_last_changes_nothing(tmp_path, jump_s):
    answers = []
    for wrong_by_s in (0.0, jump_s):
        clocks = Clocks()
        served = worlds.catalogue(tmp_path / f"{wrong_by_s:.0f}")
        async with worlds.engine(tmp_path / f"{wrong_by_s:.0f}", served, wall_clock=clocks.steady()) as engine:
            events = worlds.random_events(np.random.default_rng(0), 90, now_s=NOW_S)
            await record(engine, events[:30])
            clocks.wrong_by_s = wrong_by_s
            for batch in (events[30:45], events[45:60]):
                clocks.since_boot_s += 60.0
                await record(engine, batch)
            clocks.wrong_by_s = 0.0
            clocks.since_boot_s += 60.0
            await record(engine, events[60:])
            answers.append(await shown(engine))
    assert answers[0] == answers[1]


def test_a_clock_that_was_set_right_is_followed_after_a_while(caplog):
    clocks = Clocks()
    clock = clocks.steady()
    before = clock()
    clocks.wrong_by_s = -7200.0
    assert clock() == before
    assert "the system clock jumped by -7200 s" in caplog.text
    for _ in range(10):
        clocks.since_boot_s += PATIENCE_S / 10 - 1.0
        assert clock() == before + clocks.since_boot_s - 1000.0
    clocks.since_boot_s += 10.0
    assert clock() == clocks.wall()


def test_small_steps_are_followed_at_once_however_far_they_lead():
    clocks = Clocks()
    clock = clocks.steady()
    for _ in range(1000):
        clocks.wrong_by_s += 1.5
        assert clock() == pytest.approx(clocks.wall(), abs=1e-6)


def test_a_clock_that_keeps_jumping_is_not_followed():
    clocks = Clocks()
    clock = clocks.steady()
    for number in range(20):
        clocks.since_boot_s += PATIENCE_S - 1.0
        clocks.wrong_by_s = 1000.0 * number
        assert clock() == pytest.approx(NOW_S + clocks.since_boot_s, abs=1e-6)


@pytest.mark.parametrize("with_index", [False, True])
async def test_a_question_of_any_time_is_answered_and_spoils_no_other(tmp_path, with_index):
    served = worlds.catalogue(tmp_path, items=400, with_index=with_index, young=worlds.YOUNG)
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(0), 90, now_s=NOW_S))
        wanted = (await engine.recommend(Question("u1", 20))).result
        times_s = [0.0, -1e12, 1e12, NOW_S - 4000 * DAY_S, None]
        questions = [Question("u1", 20, time_s=time_s, explain=True) for time_s in times_s]
        answers = [each.result for each in await asyncio.gather(*map(engine.recommend, questions))]
        for answer in answers:
            assert len(answer.item_ids) == 20
            assert all(math.isfinite(score) for score in answer.scores)
        assert (answers[-1].item_ids, answers[-1].scores) == (wanted.item_ids, wanted.scores)


def test_an_event_of_the_right_time_is_admitted_while_the_clock_is_wrong():
    clocks = Clocks()
    clock = clocks.steady()
    clocks.wrong_by_s = -30 * DAY_S
    admit = Admission(clock(), 7 * DAY_S, history_import=False).admit
    event = admit("u", "e", EventKind.CLICK, "i1", None, NOW_S + 1000.0, "")
    assert event.time_s == NOW_S + 1000.0
