"""What liked items say of others: served as the definition says, whatever the index finds and the catalogue becomes."""

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import SuggestionCache, Suggestions, speaking_items, suggestions
from heliotrope_server.profile import Profile
from heliotrope_server.retriever import make_retriever
from heliotrope_server.scoring import Query, exact_scores
from tests.server import worlds

NOW_S = 1.7e9
ITEMS, DIMENSION = 1500, 16
NONE = np.empty(0, dtype=np.int64)


def clock():
    return NOW_S


def like(profile, item_id, time_us):
    event = UserEvent(profile.user_id, f"e{time_us}", EventKind.CLICK, item_id, 1.0, time_us)
    profile.apply(event)
    profile.count(event)


def by_definition(engine, user):
    """Suggestion of every row, straight from the events: newest positive event of each item, newest items first."""
    served = engine.catalogue
    newest = {}
    for event in engine.profile(user).events.values():
        if served.parameters.gain(EventKind(event.kind).parameter_name, event.value) > 0.0:
            newest[event.item_id] = max(newest.get(event.item_id, 0), event.time_us)
    liked = sorted(newest, key=lambda item: (newest[item], item), reverse=True)[: worlds.NEIGHBOUR_ITEMS]
    sums = np.zeros(served.size)
    for item in liked:
        row = served.snapshot.row_of(item)
        for neighbour, strength in zip(
            served.snapshot.neighbours.rows[row], served.snapshot.neighbours.strengths[row], strict=True
        ):
            if neighbour >= 0:
                sums[neighbour] += served.parameters.neighbours.weight * strength
    return sums


@pytest.mark.parametrize("seed", range(3))
async def test_suggestions_are_those_of_the_definition_and_change_with_the_events(tmp_path, seed):
    rng = np.random.default_rng(seed)
    served = worlds.catalogue(tmp_path, seed=seed, neighbour_weight=0.7)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        for _ in range(3):
            await engine.record(
                [
                    event._replace(event_id=f"{event.event_id}-{rng.integers(1 << 30)}")
                    for event in worlds.random_events(rng, 60, now_s=NOW_S)
                ]
            )
            for user in ("u0", "u3"):
                found = engine.answerer._suggestions(engine.profile(user))
                wanted = by_definition(engine, user)
                assert np.all(np.diff(found.rows) > 0)
                np.testing.assert_array_equal(found.rows, np.flatnonzero(wanted))
                np.testing.assert_allclose(found.gains, wanted[found.rows], rtol=1e-5)
        assert engine.answerer._suggestions(engine.profile("nobody")) is None


@pytest.mark.parametrize("with_index", [False, True])
async def test_items_without_neighbours_suggest_nothing(tmp_path, with_index):
    served = worlds.catalogue(tmp_path, neighbour_weight=0.7, with_index=with_index)
    assert (served.snapshot.neighbours.rows[[0, 3]] == -1).all()
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        for item in ("i0", "i3"):
            await engine.record([UserEvent("u", item, EventKind.CLICK, item, 1.0, int(NOW_S * 1e6), "")])
            assert engine.answerer._suggestions(engine.profile("u")) is None
            assert len((await engine.recommend(Question("u", 10, explain=True))).result.item_ids) == 10


async def test_an_undo_takes_back_what_its_item_said(tmp_path):
    served = worlds.catalogue(tmp_path, neighbour_weight=0.7)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([UserEvent("u", "a", EventKind.CLICK, "i1", 1.0, int(NOW_S * 1e6), "")])
        before = engine.answerer._suggestions(engine.profile("u"))
        await engine.record([UserEvent("u", "b", EventKind.CLICK, "i2", 1.0, int(NOW_S * 1e6), "")])
        assert len(engine.answerer._suggestions(engine.profile("u")).rows) > len(before.rows)
        await engine.record([UserEvent("u", "c", EventKind.UNDO, "", 1.0, int(NOW_S * 1e6), "b")])
        np.testing.assert_array_equal(engine.answerer._suggestions(engine.profile("u")).rows, before.rows)
        await engine.forget("u")
        assert "u" not in engine.answerer._suggested._kept


@pytest.mark.parametrize("indexed", [{}, {"with_index": True}, {"with_index": True, "head": 100}])
def test_every_retriever_finds_what_is_suggested_however_far_it_was(tmp_path, indexed):
    served = worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, **indexed)
    rng = np.random.default_rng(0)
    counts = np.zeros(served.size)
    counts[rng.choice(served.size, 40, replace=False)] = rng.exponential(20.0, 40)
    live = live_view(served, counts)
    retriever = make_retriever(served)
    recalls = []
    for _ in range(40):
        suggested = Suggestions(
            np.sort(rng.choice(ITEMS, 200, replace=False)), rng.exponential(8.0, 200).astype(np.float32)
        )
        query = Query(rng.normal(size=DIMENSION).astype(np.float32), 10, rng.choice(ITEMS, 30), suggested)
        scores = exact_scores(served, live, query._replace(suggestions=None), np.arange(ITEMS)).astype(np.float64)
        scores[suggested.rows] += suggested.gains
        ranking = retriever.rank([query], live)[0]
        assert len(set(ranking.rows)) == 10
        np.testing.assert_allclose(ranking.scores, scores[ranking.rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            exact_scores(served, live, query, ranking.rows), ranking.scores, rtol=1e-4, atol=1e-4
        )
        recalls.append(len(set(ranking.rows) & set(np.argsort(-scores)[:10])) / 10)
    assert np.mean(recalls) >= 0.99


@pytest.mark.parametrize("with_index", [False, True])
async def test_a_removed_item_is_not_suggested_and_a_replaced_one_is_at_its_new_row(tmp_path, with_index):
    served = worlds.catalogue(tmp_path, neighbour_weight=5_000.0, with_index=with_index)
    table = served.snapshot.neighbours.rows
    removed, replaced = (served.item_ids[row] for row in table[1][:2])
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([UserEvent("u", "a", EventKind.CLICK, "i1", 1.0, int(NOW_S * 1e6), "")])
        first = (await engine.recommend(Question("u", 5))).result
        assert set(first.item_ids) == {served.item_ids[row] for row in table[1]}
        served.delete(removed)
        pooled = np.zeros(served.dimension, dtype=np.float32)
        served.upsert(DeltaItem(CatalogItem(replaced, "other"), pooled, pooled, 0.0, served.version, "none"))
        engine.popularity.grow(served.size)
        answer = (await engine.recommend(Question("u", 5, explain=True))).result
        assert removed not in answer.item_ids
        assert set(first.item_ids) - {removed} < set(answer.item_ids)
        place = answer.item_ids.index(replaced)
        assert answer.rows[place] == served.rows[replaced]
        for score, parts in zip(answer.scores, answer.explanations, strict=True):
            assert score == pytest.approx(sum(part.value for part in parts), rel=1e-5, abs=1e-4)


def test_the_cache_is_bounded_and_follows_the_profile(tmp_path, monkeypatch):
    monkeypatch.setattr("heliotrope_server.neighbours.CACHED", 2)
    served = worlds.catalogue(tmp_path, neighbour_weight=1.0)
    cache, profiles = SuggestionCache(served), []
    for number in range(4):
        profile = Profile(f"u{number}", served)
        like(profile, f"i{1 + 3 * number}", 5)
        profiles.append(profile)
    found = [cache.of(profile) for profile in profiles]
    assert len(cache._kept) == 2
    assert cache.of(profiles[3]) is found[3]
    like(profiles[3], "i2", 6)
    profiles[3].lsn = 1
    again = cache.of(profiles[3])
    assert again is not found[3]
    np.testing.assert_array_equal(again.rows, suggestions(profiles[3], served).rows)
    assert speaking_items(profiles[3], 1) == ["i2"]
