import asyncio
import os
import random

import numpy as np
import pytest
from scipy.special import expit

from heliotrope_indexer.parameters import LogOddsCurve
from heliotrope_server import profile_store
from heliotrope_server.answerer import Question
from heliotrope_server.errors import InvalidArgumentError, StorageFailedError, VersionNotAvailableError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.list_rules import ListRules
from heliotrope_server.profile import Applied
from heliotrope_server.record_log import RecordLog, segments
from tests.server import worlds

NOW_S = 1.7e9


def clock():
    return NOW_S


def event(number, *, user="u", kind=EventKind.CLICK, item="i1", time_s=NOW_S, undone=""):
    value = 1.0
    return UserEvent(user, f"e{number}", kind, "" if undone else item, value, round(time_s * 1e6), undone)


async def state(engine, users):
    """What can be seen of each user: the vectors, and the whole ranking with scores."""
    seen = {}
    for user in users:
        answer = (await engine.recommend(Question(user, 50, time_s=NOW_S))).result
        profile = engine.profile(user)
        seen[user] = (
            profile.interest_vectors(NOW_S, engine.catalogue.parameters),
            profile.event_count,
            dict(zip(answer.item_ids, answer.scores, strict=True)),
        )
    return seen


def assert_same(found, wanted):
    for user, (vectors, count, scores) in wanted.items():
        np.testing.assert_allclose(found[user][0], vectors, rtol=1e-5, atol=1e-7)
        assert found[user][1] == count
        assert found[user][2].keys() == scores.keys()
        for item_id, score in scores.items():
            assert found[user][2][item_id] == pytest.approx(score, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
async def test_contributions_sum_to_the_score_for_every_recommendation(tmp_path, seed):
    rng = np.random.default_rng(seed)
    served = worlds.catalogue(tmp_path, seed=seed, with_index=bool(seed % 2), neighbour_weight=float(seed // 3))
    async with worlds.engine(tmp_path, served, wall_clock=clock, ring_size=16) as engine:
        await engine.record(worlds.random_events(rng, 150, now_s=NOW_S, days=60.0))
        await engine.record([event("undo", user="u0", kind=EventKind.UNDO, undone="e5")])
        folded = 0
        for user in [*(f"u{number}" for number in range(5)), "nobody"]:
            answer = (await engine.recommend(Question(user, 40, explain=True))).result
            assert len(answer.item_ids) == 40
            for score, parts in zip(answer.scores, answer.explanations, strict=True):
                scale = sum(abs(part.value) for part in parts)
                assert abs(score - sum(part.value for part in parts)) <= 1e-5 * scale
            folded += engine.profile(user).folded_count
        assert folded > 0


async def test_probabilities_follow_the_curve_of_the_snapshot_and_so_does_the_relevance_floor(tmp_path):
    curve = LogOddsCurve(scores=(-1e3, 0.0, 1e3), log_odds=(-1e2, -2.0, 8.0))
    served = worlds.catalogue(tmp_path, probability=curve)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        answer = (await engine.recommend(Question("nobody", 40))).result
        expected = expit(np.interp(answer.scores, curve.scores, curve.log_odds))
        np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-9)
        assert answer.probabilities == sorted(answer.probabilities, reverse=True)
        # By the curve all of them are nearly alike, so that diversity may choose among all; by their scores few are.
        floor = 0.6
        assert answer.probabilities[-1] / answer.probabilities[0] > floor > answer.scores[-1] / answer.scores[0]
        rules = ListRules(diversity=1.0, relevance_floor=floor)
        diverse = (await engine.recommend(Question("nobody", 10, rules=rules))).result
        ranks = [answer.item_ids.index(item) if item in answer.item_ids else 40 for item in diverse.item_ids]
        assert max(ranks) > 15
        closed = ListRules(diversity=1.0, relevance_floor=1.0)
        assert (await engine.recommend(Question("nobody", 10, rules=closed))).result.item_ids == answer.item_ids[:10]


async def test_other_weights_score_and_explain_at_once_and_go_with_their_snapshot(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([event(1, item="i3"), event(2, item="i4", user="other")])
        before = (await engine.recommend(Question("u", 10))).result
        matrices, theta = engine.answerer.scoring_matrices * np.float32(0.5), np.array([0.7])
        engine.answerer.use_weights(matrices, theta)
        answer = (await engine.recommend(Question("u", 200, explain=True))).result
        query = np.einsum("hd,hde->e", answer.interests, matrices)
        for place, row in enumerate(answer.rows.tolist()):
            count = engine.popularity.counts_at(NOW_S)[row]
            score = query @ served.row_vector(row) + served.bias(row) + 0.7 * np.log1p(count) - 1.5
            assert answer.scores[place] == pytest.approx(score, abs=1e-5)
            assert sum(part.value for part in answer.explanations[place]) == pytest.approx(score, abs=1e-5)
        with pytest.raises(ValueError, match="expected"):
            engine.answerer.use_weights(matrices[:1], theta)
        with pytest.raises(ValueError, match="finite"):
            engine.answerer.use_weights(matrices, np.array([-1.0]))
        engine.answerer.serve(engine.answerer.serving_of(served))
        assert (await engine.recommend(Question("u", 10))).result.scores == before.scores


async def test_a_recommendation_reflects_the_event_that_was_acknowledged(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        before = (await engine.recommend(Question("u", 10))).result
        assert set(before.sources) == {3}
        _, lsn = await engine.record([event(1, item=before.item_ids[0])])
        after = (await engine.recommend(Question("u", 10, version_token=engine.clock.token(lsn)))).result
        assert set(after.sources) == {1}
        assert before.item_ids[0] not in after.item_ids
        assert after.profile_version == engine.clock.token(lsn)
        again = (await engine.recommend(Question("u", 200, include_seen=True))).result
        assert before.item_ids[0] in again.item_ids
        with pytest.raises(VersionNotAvailableError):
            await engine.recommend(Question("u", 10, version_token=engine.clock.token(lsn + 1)))


async def test_a_dislike_lowers_and_its_undo_restores(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:

        async def score_of(item_id):
            answer = (await engine.recommend(Question("u", 200, include_seen=True))).result
            return dict(zip(answer.item_ids, answer.scores, strict=True))[item_id]

        await engine.record([event(0, item="i9")])
        first = await score_of("i1")
        await engine.record([event(1, kind=EventKind.HIDE, item="i1")])
        hidden = await score_of("i1")
        await engine.record([event(2, kind=EventKind.UNDO, undone="e1")])
        assert await score_of("i1") == pytest.approx(first, rel=1e-5)
        assert hidden != pytest.approx(first, rel=1e-3)


async def test_duplicates_are_told_and_count_once(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        fates, _ = await engine.record([event(1), event(1), event(2, user="other")])
        assert [fate.applied for fate in fates] == [Applied.RECORDED, Applied.DUPLICATE, Applied.RECORDED]
        assert engine.popularity.counts_at(NOW_S)[served.rows["i1"]] == pytest.approx(2.0)


async def test_live_popularity_moves_everybody_and_is_taken_back_by_an_undo(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        cold = (await engine.recommend(Question("nobody", 200, time_s=NOW_S))).result
        await engine.record([event(number, user=f"fan{number}", item=cold.item_ids[-1]) for number in range(50)])
        hot = (await engine.recommend(Question("nobody", 200, time_s=NOW_S))).result
        gain = dict(zip(hot.item_ids, hot.scores, strict=True))[cold.item_ids[-1]] - cold.scores[-1]
        assert gain == pytest.approx(0.3 * np.log1p(50.0), rel=1e-4)
        undos = [event(f"x{n}", user=f"fan{n}", kind=EventKind.UNDO, undone=f"e{n}") for n in range(50)]
        await engine.record(undos)
        back = (await engine.recommend(Question("nobody", 200, time_s=NOW_S))).result
        np.testing.assert_allclose(back.scores, cold.scores, rtol=1e-5)


@pytest.mark.parametrize("crash", [False, True])
async def test_a_restart_brings_everything_back(tmp_path, crash):
    rng = np.random.default_rng(7)
    users = [f"u{number}" for number in range(5)]
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock, crash=crash, ring_size=16) as engine:
        events = worlds.random_events(rng, 300, now_s=NOW_S, days=30.0)
        await engine.record(events[:200])
        await engine.checkpoint()
        await engine.record(events[200:])
        await engine.record([event("x", user="u1", kind=EventKind.UNDO, undone=events[-1].event_id)])
        await engine.record(events[:50])
        wanted = await state(engine, users)
    async with worlds.engine(tmp_path, served, wall_clock=clock, ring_size=16) as engine:
        assert_same(await state(engine, users), wanted)
        fates, _ = await engine.record(events)
        assert {fate.applied for fate in fates} == {Applied.DUPLICATE}
        assert_same(await state(engine, users), wanted)


async def test_a_checkpoint_under_load_is_a_cut_at_one_record(tmp_path):
    """Recovering a checkpoint that was taken while events streamed in equals replaying the log alone."""
    rng = np.random.default_rng(11)
    users = [f"u{number}" for number in range(300)]
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock, crash=True) as engine:
        batches = [worlds.random_events(rng, 1000, users=300, now_s=NOW_S)]
        await engine.record(batches[0])
        checkpoint = asyncio.create_task(engine.checkpoint())
        number = 0
        while not checkpoint.done():
            fresh = [e._replace(event_id=f"{e.event_id}-{number}") for e in batches[0][number * 7 % 900 :][:20]]
            await engine.record(fresh)
            number += 1
        assert number > 1
        assert engine.store.checkpoint_lsn == 1000
        wanted = await state(engine, users)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        assert_same(await state(engine, users), wanted)


async def test_a_stop_in_the_middle_of_a_checkpoint_saves_everybody(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_store, "_SLICE_S", 1e-6)  # one profile at a time
    users = [f"u{number}" for number in range(300)]
    events = worlds.random_events(np.random.default_rng(12), 1000, users=300, now_s=NOW_S)
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path / "other", served, wall_clock=clock) as engine:
        await engine.record(events)
        wanted = await state(engine, users)
    async with worlds.engine(tmp_path, served, wall_clock=clock, checkpoint_interval_s=0.001) as engine:
        await engine.record(events)
        while not 0 < len(engine.store._cut) < 250:
            assert not engine.store.checkpoint_lsn, "the checkpoint was over before it was seen"
            await asyncio.sleep(0)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        assert engine.store.checkpoint_lsn == 1000
        assert_same(await state(engine, users), wanted)


async def test_the_log_cut_at_any_byte_of_its_last_records_keeps_what_was_before(tmp_path):
    served = worlds.catalogue(tmp_path)
    log_path = tmp_path / "shard" / "log"
    sizes, wanted = [], []
    async with worlds.engine(tmp_path, served, wall_clock=clock, crash=True) as engine:
        await engine.record([event(0)])
        for number in range(1, 4):
            wanted.append(await state(engine, ["u"]))
            sizes.append(segments(log_path)[-1].stat().st_size)
            await engine.record([event(number, item=f"i{number}")])
    path = segments(log_path)[-1]
    whole = path.read_bytes()
    for cut in range(sizes[0], len(whole), 7):
        path.write_bytes(whole[:cut])
        async with worlds.engine(tmp_path, served, wall_clock=clock, crash=True) as engine:
            last = max(place for place, size in enumerate(sizes) if size <= cut)
            assert_same(await state(engine, ["u"]), wanted[last])


async def test_a_disk_that_fails_acknowledges_nothing_and_shows_as_unhealthy(tmp_path):
    broken = False

    def sync(descriptor):
        if broken:
            raise OSError(5, "Input/output error")
        os.fdatasync(descriptor)

    served = worlds.catalogue(tmp_path)
    factory = lambda folder: RecordLog(folder, sync=sync)  # noqa: E731
    async with worlds.engine(tmp_path, served, wall_clock=clock, log_factory=factory) as engine:
        await engine.record([event(1)])
        assert engine.healthy
        broken = True
        with pytest.raises(StorageFailedError, match="Input/output error"):
            await engine.record([event(2)])
        assert engine.profile("u").event_count == 1
        assert not engine.healthy
        assert (await engine.recommend(Question("u", 3))).result.item_ids


async def test_forgetting_a_user_survives_a_restart(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([event(1), event(2), event(3, user="stays")])
        await engine.checkpoint()
        assert engine.profile_count() == 2
        assert await engine.forget("u") == 2
        assert engine.profile("u").event_count == 0
        assert engine.profile_count() == 1
        await engine.record([event(4)])
        assert engine.profile("u").event_count == 1
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        assert engine.profile("u").event_count == 1
        assert engine.profile("stays").event_count == 1


async def test_profiles_beyond_those_whose_sums_are_kept_answer_the_same(tmp_path, monkeypatch):
    served = worlds.catalogue(tmp_path)
    events = worlds.random_events(np.random.default_rng(3), 200, users=20, now_s=NOW_S)
    users = [f"u{number}" for number in range(20)]
    async with worlds.engine(tmp_path / "all", served, wall_clock=clock) as engine:
        await engine.record(events)
        wanted = await state(engine, users)
    monkeypatch.setattr("heliotrope_server.profile_store.SETTLED", 3)
    async with worlds.engine(tmp_path / "few", served, wall_clock=clock) as engine:
        for start in range(0, len(events), 50):
            await engine.record(events[start : start + 50])
            await state(engine, users)
            await engine.checkpoint()
        assert_same(await state(engine, users), wanted)
        await engine.checkpoint()
        await asyncio.sleep(0)
        assert sum(profile._total is not None for profile in engine.store._cache.values()) == 3


async def test_a_batch_does_what_its_events_do_one_by_one(tmp_path):
    served = worlds.catalogue(tmp_path, young=worlds.YOUNG)
    rng = np.random.default_rng(9)
    events = worlds.random_events(rng, 300, items=20, now_s=NOW_S, days=30.0)
    undos = [
        event(f"undo-{number}", user=one.user_id, kind=EventKind.UNDO, undone=one.event_id)
        for number, one in enumerate(events[::7])
    ]
    batch = [*events, *undos, *events[::5]]
    batch = [batch[place] for place in rng.permutation(len(batch))]
    users = [f"u{number}" for number in range(5)]
    async with worlds.engine(tmp_path / "one", served, wall_clock=clock, ring_size=32) as engine:
        fates = [(await engine.record([each]))[0][0] for each in batch]
        wanted, counts, lsn = await state(engine, users), engine.popularity.counts_at(NOW_S), engine.applied_lsn
        counted = {user: engine.profile(user).counted for user in users}
        heard = {item_id: heard.users for item_id, heard in engine.residuals.own.items()}
    served = worlds.catalogue(tmp_path / "again", young=worlds.YOUNG)
    async with worlds.engine(tmp_path / "batch", served, wall_clock=clock, ring_size=32) as engine:
        found, last_lsn = await engine.record(batch)
        assert [fate.applied for fate in found] == [fate.applied for fate in fates]
        assert {fate.applied for fate in fates} >= {Applied.RECORDED, Applied.DUPLICATE}
        assert last_lsn == engine.applied_lsn == lsn
        assert_same(await state(engine, users), wanted)
        np.testing.assert_allclose(engine.popularity.counts_at(NOW_S), counts, rtol=1e-9, atol=1e-12)
        assert {user: engine.profile(user).counted for user in users} == counted
        assert {item_id: heard.users for item_id, heard in engine.residuals.own.items()} == heard and heard


async def test_profiles_beyond_the_cache_are_read_back_from_disk(tmp_path):
    served = worlds.catalogue(tmp_path)
    users = [f"u{number}" for number in range(40)]
    async with worlds.engine(tmp_path, served, wall_clock=clock, cache_profiles=4) as engine:
        await engine.record([event(user, user=user, item=f"i{place}") for place, user in enumerate(users)])
        wanted = await state(engine, users)
        await engine.checkpoint()
        assert_same(await state(engine, users), wanted)


@pytest.mark.parametrize("count", [0, -1, 1001, 10_000])
async def test_a_count_outside_of_its_limits_is_named(tmp_path, count):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served) as engine:
        with pytest.raises(InvalidArgumentError, match=f"count must be 1 to 1000, not {count}") as caught:
            await engine.recommend(Question("u", count))
        assert caught.value.metadata == {"value": str(count), "limit": "1000"}


async def test_many_at_once_answer_as_one_by_one_and_errors_stay_alone(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(2), 100, now_s=NOW_S))
        questions = [Question(f"u{random.Random(n).randrange(7)}", 5, time_s=NOW_S) for n in range(150)]
        questions[70] = Question("u1", 0)
        outcomes = await engine.recommend_many(questions)
        assert isinstance(outcomes[70], InvalidArgumentError)
        for place, question in enumerate(questions):
            if place != 70:
                alone = (await engine.recommend(question)).result
                assert outcomes[place].item_ids == alone.item_ids
