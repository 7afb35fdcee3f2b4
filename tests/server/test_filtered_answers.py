"""Filters through a real engine: list rules, freshness, exploration, profiles, changes of the catalogue, restarts."""

import numpy as np
import pytest

from heliotrope_indexer.attributes import Attributes
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.answerer import SOURCE_EXPLORE, SOURCE_FRESH, Question
from heliotrope_server.catalogue_log import CatalogueChanges, decode_upsert, encode_upsert
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.item_filter import ItemFilter, LabelIn, NumberIn, ValueIn
from heliotrope_server.list_rules import ListRules
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.record_log import RecordLog
from tests.server import worlds

NOW_S = 1.7e9
EVEN = ItemFilter((LabelIn("category", ("even",)),))
ALL = ItemFilter(include_unavailable=True)


def clock():
    return NOW_S


@pytest.fixture(params=[False, True], ids=["exact", "index"])
def served(request, tmp_path):
    return worlds.catalogue(tmp_path, attributed=True, with_index=request.param)


async def upsert(engine, *items, added_s=NOW_S, bias=0.0):
    """Writes items into the catalogue log as the servicer does."""
    log = RecordLog(engine.changes.folder)
    vector = np.zeros(engine.catalogue.dimension, np.float32)
    entries = [DeltaItem(item, vector, None, bias, "", "none", added_s) for item in items]
    await log.append([encode_upsert(entry) for entry in entries], lambda first: None)
    log.close()
    engine.catch_up_catalogue()


async def ask(engine, filter, wanted=200, **more):
    return (await engine.recommend(Question("u", wanted, filter=filter, **more))).result


def number(item_id):
    return int(item_id[1:])


async def test_a_filtered_list_is_the_whole_list_without_what_is_not_admitted(tmp_path, served):
    events = worlds.random_events(np.random.default_rng(0), 40, users=1, now_s=NOW_S)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([event._replace(user_id="u") for event in events])
        for seen in (False, True):
            whole = await ask(engine, ALL, include_seen=seen, excluded_item_ids=["i8", "i9"])
            scores = dict(zip(whole.item_ids, whole.scores, strict=True))
            asked = ItemFilter((LabelIn("category", ("even",)), NumberIn("price", 2.0, 16.0)), include_unavailable=True)
            found = await ask(engine, asked, include_seen=seen, excluded_item_ids=["i8", "i9"])
            wanted = [
                item_id
                for item_id in whole.item_ids
                if number(item_id) % 2 == 0 and number(item_id) % 3 and 20 <= number(item_id) <= 160
            ]
            assert found.item_ids == wanted
            np.testing.assert_allclose(found.scores, [scores[item_id] for item_id in wanted], rtol=1e-5, atol=1e-6)


async def test_explanations_of_a_filtered_list_sum_to_its_scores(tmp_path, served):
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([UserEvent("u", "e", EventKind.CLICK, "i4", 1.0, round((NOW_S - 60) * 1e6))])
        answer = await ask(engine, EVEN, wanted=5, explain=True)
        for score, parts in zip(answer.scores, answer.explanations, strict=True):
            assert sum(part.value for part in parts) == pytest.approx(score, rel=1e-5)


async def test_what_is_not_available_is_left_out_unless_asked_for(tmp_path, served):
    def available(item_id, at_s):
        late, early = number(item_id) % 11 == 0, number(item_id) % 13 == 0 and number(item_id) % 11
        return not ((late and at_s < 1e9) or (early and at_s >= 1e9))

    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        everything = {f"i{item}" for item in range(200)}
        for at_s in (None, 1e9, 1e9 - 0.5):
            moment = NOW_S if at_s is None else at_s
            found = await ask(engine, None, time_s=at_s)
            assert set(found.item_ids) == {item for item in everything if available(item, moment)}
            assert set((await ask(engine, ALL, time_s=at_s)).item_ids) == everything
        assert len({len((await ask(engine, None, time_s=at_s)).item_ids) for at_s in (1e9, 1e9 - 0.5)}) == 2


async def test_a_filter_follows_the_catalogue_and_a_restart(tmp_path, served):
    asked = ItemFilter((ValueIn("studio", texts=("new",)), NumberIn("price", most=5.0)))
    made = Attributes.of({"studio": "new", "year": 2020, "adult": False}, price=4.5, available_until_s=NOW_S + 60)
    item = CatalogItem("n1", "t", "", ("c1",), "p1", made)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        assert (await ask(engine, asked)).item_ids == []
        await upsert(engine, item, CatalogItem("i5", "t", attributes=Attributes.of({"studio": "new"}, price=5.0)))
        assert set((await ask(engine, asked)).item_ids) == {"n1", "i5"}
        assert set((await ask(engine, asked, time_s=NOW_S + 60)).item_ids) == {"i5"}
        await upsert(engine, CatalogItem("i5", "t", attributes=Attributes.of({"studio": "new"}, price=5.01)))
        assert (await ask(engine, asked)).item_ids == ["n1"]
    fresh = worlds.LiveCatalogue(served.snapshot)
    async with worlds.engine(tmp_path, fresh, wall_clock=clock) as engine:
        assert (await ask(engine, asked)).item_ids == ["n1"]
        assert engine.catalogue.item(engine.require_item("n1")) == item
    again = CatalogueChanges(tmp_path / "catalogue")
    again.catch_up()
    assert again.live_items()[0].item == item


async def test_a_snapshot_that_holds_the_attributes_absorbs_an_item_and_one_that_lacks_them_does_not(tmp_path, served):
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await upsert(engine, worlds.item(7, attributed=True))
        await upsert(engine, worlds.item(8, labelled=True))
        engine.adopt(worlds.LiveCatalogue(served.snapshot))
        assert [entry.item.item_id for entry in engine.catalogue.delta] == ["i8"]


async def test_fresh_and_explored_items_meet_the_filter(tmp_path, served):
    settings = {"freshness_weight": 10.0, "freshness_quota": 0.5}
    async with worlds.engine(tmp_path, served, wall_clock=clock, **settings) as engine:
        news = [CatalogItem(f"n{place}", "t", "", ("even" if place % 2 else "odd",)) for place in range(20)]
        closed = CatalogItem("n99", "t", "", ("even",), attributes=Attributes.of({}, available_from_s=NOW_S + 1))
        await upsert(engine, *news, closed, bias=-2.0)
        answer = await ask(engine, EVEN, wanted=10)
        fresh = [item for item, source in zip(answer.item_ids, answer.sources, strict=True) if source == SOURCE_FRESH]
        assert len(fresh) == 5 and all(item[0] == "n" and number(item) % 2 for item in fresh)
        rules = ListRules(explore_share=0.5, max_per_category=6, diversity=0.3)
        explored = 0
        for _ in range(20):
            answer = await ask(engine, EVEN, wanted=5, rules=rules)
            explored += answer.sources[-1] == SOURCE_EXPLORE
            assert all(number(item) % 2 == (item[0] == "n") for item in answer.item_ids)
            assert "n99" not in answer.item_ids
        assert explored


async def test_rules_reach_for_more_of_what_the_filter_admits(tmp_path, served):
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        answer = await ask(engine, EVEN, wanted=7, rules=ListRules(max_per_category=7, max_provider_share=0.01))
        providers = [number(item) % 5 for item in answer.item_ids if number(item) % 5]
        assert len(answer.item_ids) == 7 and len(providers) == len(set(providers))
        assert all(number(item) % 2 == 0 for item in answer.item_ids)


async def test_questions_of_a_batch_have_their_own_filters(tmp_path, served):
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        odd = ItemFilter((LabelIn("category", ("odd",)),))
        asked = [
            Question("u", 8, filter=EVEN),
            Question("u", 8),
            Question("u", 8, filter=odd),
            Question("v", 8, filter=odd),
        ]
        found = await engine.recommend_many(asked)
        for question, answer in zip(asked, found, strict=True):
            alone = (await engine.recommend(question)).result
            assert answer.item_ids == alone.item_ids
        assert [{number(item) % 2 for item in answer.item_ids} for answer in found][2:] == [{1}, {1}]
        assert {number(item) % 2 for item in found[0].item_ids} == {0}


def test_an_item_without_attributes_is_written_as_before_items_had_any():
    entry = DeltaItem(CatalogItem("n", "t", "d", ("c",), "p"), np.ones(4, np.float32), None, 0.5, "v", "m", 7.0)
    assert len(encode_upsert(entry)) == 12
    assert decode_upsert(encode_upsert(entry)).item == entry.item
