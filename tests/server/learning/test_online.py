"""Online learning on a real engine: feedback in, promoted weights out, and back again."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.answerer import Question
from heliotrope_server.errors import UnknownRequestError, WeightsUnchangedError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.learning.impression_log import read_feedback, read_impressions
from heliotrope_server.learning.online import OnlineLearning
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.settings import LearningSettings
from tests.server import worlds
from tests.server.learning.hidden_taste import LEARNING, SNAPSHOT, USER_IDS, HiddenTaste

NOW_S = 1.7e9


def clock():
    return NOW_S


@asynccontextmanager
async def learning_engine(folder, catalogue, *, leads=True, **settings):
    """An engine that learns; as the shard starts it, on the same folder as before if there was one."""
    heard = []

    async def announce():
        heard.append(True)

    async with worlds.engine(folder, catalogue, wall_clock=clock) as engine:
        chosen = LearningSettings(**{"learn_online": True, **LEARNING, **settings})
        engine.learning = OnlineLearning(
            folder / "shard",
            folder / "weights",
            engine.answerer,
            engine.popularity,
            chosen,
            engine.now_s,
            announce if leads else None,
        )
        engine.learning.start()
        try:
            yield engine
        finally:
            await engine.learning.stop()


async def warm_up(engine, taste):
    await engine.record(
        [
            UserEvent(user, f"e{number}", EventKind.CLICK, item, 1.0, round(NOW_S * 1e6))
            for number, (user, item) in enumerate(taste.events())
        ]
    )


async def shown(engine, user, count=8):
    answer = (await engine.recommend(Question(user, count))).result
    request_id = answer.request_id
    engine.learning.note(request_id, user, answer)
    return request_id, answer


async def give_feedback(engine, taste, until, rounds=40):
    """Shows every user their list and gives feedback, again and again until `until()`."""
    for _ in range(rounds):
        for user in USER_IDS:
            request_id, answer = await shown(engine, user)
            # The lowest reward becomes an explicit 0, so that exactly what is named counts.
            rewards = taste.rewards(answer.interests, answer.item_ids)
            engine.learning.feedback(user, request_id, {**rewards, min(rewards, key=rewards.get): 0.0})
        await asyncio.sleep(0)
        # What was promoted goes to disk in a thread; let it finish before looking.
        async with engine.learning.leader._changing:
            if until():
                return
    raise AssertionError("not reached")


async def rankings(engine):
    found = {}
    for user in USER_IDS:
        answer = (await engine.recommend(Question(user, 20, explain=True))).result
        for score, parts in zip(answer.scores, answer.explanations, strict=True):
            assert score == pytest.approx(sum(part.value for part in parts), abs=1e-5)
        found[user] = (answer.item_ids, answer.scores)
    return found


async def click_rate(engine, taste):
    """Expected reward of the first 8 items, by the hidden taste."""
    rates = []
    for user in USER_IDS:
        answer = (await engine.recommend(Question(user, 8))).result
        rates += taste.rewards(answer.interests, answer.item_ids).values()
    return float(np.mean(rates))


async def test_feedback_promotes_better_weights_which_survive_a_restart_and_can_be_taken_back(tmp_path):
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    taste = HiddenTaste(served.snapshot)
    async with learning_engine(tmp_path, served) as engine:
        await warm_up(engine, taste)
        frozen, before = await click_rate(engine, taste), await rankings(engine)
        with pytest.raises(WeightsUnchangedError, match="its own weights"):
            await engine.learning.leader.roll_back()
        await give_feedback(engine, taste, lambda: engine.learning.weights_version >= 1)
        (promotion, *_) = engine.learning.leader.promotions
        assert promotion.verdict.challenger_loss < promotion.verdict.defender_loss
        assert await click_rate(engine, taste) > frozen
        version, learned = engine.learning.weights_version, await rankings(engine)
        assert learned != before
    async with learning_engine(tmp_path, served) as engine:
        assert engine.learning.weights_version == version
        assert await rankings(engine) == learned
        while engine.learning.weights_version:
            await engine.learning.leader.roll_back()
        assert await rankings(engine) == before
        assert engine.learning.keeper.pointer.last_version == version
        assert version in engine.learning.keeper.pointer.withdrawn
    async with learning_engine(tmp_path, served) as engine:
        assert engine.learning.weights_version == 0
        await give_feedback(engine, taste, lambda: engine.learning.weights_version > version)


async def test_weights_belong_to_a_snapshot(tmp_path):
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    first = served.version
    async with learning_engine(tmp_path, served) as engine:
        taste = HiddenTaste(served.snapshot)
        await warm_up(engine, taste)
        await give_feedback(engine, taste, lambda: engine.learning.weights_version == 1)
        learned = await rankings(engine)
        request_id, answer = await shown(engine, USER_IDS[0])
        before = (await engine.recommend(Question("u", 100))).result
        version = worlds.publish(tmp_path / "store", **{**SNAPSHOT, "items": 60}, seed=3)
        engine.adopt(LiveCatalogue(SnapshotStore(tmp_path / "store").open(version)))
        assert engine.learning.weights_version == 0
        np.testing.assert_array_equal(engine.answerer.scoring_matrices, engine.catalogue.snapshot.scoring_matrices)
        # An answer that was made before the swap and goes out after it; its rows are larger than the catalogue is now.
        engine.learning.note("late", "u", before)
        engine.learning.feedback("u", "late", {before.item_ids[0]: 1.0})
        assert engine.learning.stale_count == 1
        # Feedback on an answer of the other snapshot is taken, but nothing can be learned from it.
        engine.learning.feedback(USER_IDS[0], request_id, {answer.item_ids[0]: 1.0})
        assert engine.learning.stale_count == 2
        again = LiveCatalogue(SnapshotStore(tmp_path / "store").open(first))
        engine.adopt(again)
        assert engine.learning.weights_version == 1
        assert await rankings(engine) == learned


async def test_a_follower_hears_of_other_weights_by_looking(tmp_path):
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    taste = HiddenTaste(served.snapshot)
    async with learning_engine(tmp_path, served) as leader:
        await warm_up(leader, taste)
        await give_feedback(leader, taste, lambda: leader.learning.weights_version == 1)
        learned = leader.answerer.scoring_matrices
        follower_folder = tmp_path / "follower"
        (follower_folder / "x").mkdir(parents=True)
        (follower_folder / "weights").symlink_to(tmp_path / "weights")
        async with learning_engine(follower_folder, LiveCatalogue(served.snapshot), leads=False) as follower:
            assert follower.learning.weights_version == 1
            np.testing.assert_array_equal(follower.answerer.scoring_matrices, learned)
            await leader.learning.leader.roll_back()
            assert follower.learning.keeper.catch_up()
            assert follower.learning.weights_version == 0
            assert not follower.learning.keeper.catch_up()


async def test_examples_of_a_follower_wait_for_the_leader_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("heliotrope_server.learning.online.MAX_OUTBOX", 20)
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    async with learning_engine(tmp_path, served, leads=False) as engine:
        for number in range(4):
            request_id, answer = await shown(engine, "u")
            engine.learning.feedback("u", request_id, {answer.item_ids[7]: 1.0})
            assert engine.learning.lost_count == max(0, 8 * (number - 1))
        groups = engine.learning.take_outbox(10)
        assert [group.size for group in groups] == [8, 8]
        assert not engine.learning.outbox_filled.is_set()
        engine.learning.put_back(groups)
        assert engine.learning.outbox_size == 16 and engine.learning.outbox_filled.is_set()


async def test_damaged_weights_are_not_served(tmp_path):
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    taste = HiddenTaste(served.snapshot)
    async with learning_engine(tmp_path, served) as engine:
        await warm_up(engine, taste)
        before = await rankings(engine)
        await give_feedback(engine, taste, lambda: engine.learning.weights_version == 1)
    (path,) = (tmp_path / "weights").glob("*/*.weights")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    async with learning_engine(tmp_path, served) as engine:
        assert engine.learning.weights_version == 0
        assert await rankings(engine) == before


async def test_the_log_holds_what_was_shown_and_what_came_of_it(tmp_path):
    served = worlds.catalogue(tmp_path, **SNAPSHOT)
    async with learning_engine(tmp_path, served, learn_online=False, impression_log_share=1.0) as engine:
        request_id, answer = await shown(engine, "u")
        engine.learning.feedback("u", request_id, {answer.item_ids[2]: 1.0})
        await engine.forget("u")
        with pytest.raises(UnknownRequestError):
            engine.learning.feedback("u", request_id, {answer.item_ids[3]: 1.0})
    (impression,) = read_impressions(tmp_path / "shard" / "impressions")
    assert (impression.request_id, impression.item_ids) == (request_id, answer.item_ids)
    assert impression.scores == answer.scores and impression.snapshot_version == served.version
    (feedback,) = read_feedback(tmp_path / "shard" / "impressions")
    assert (feedback.item_ids, feedback.rewards) == (answer.item_ids[:3], [0.0, 0.0, 1.0])
