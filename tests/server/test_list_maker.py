"""List rules and freshness through a real engine, against scores of the whole catalogue."""

from collections import Counter

import numpy as np
import pytest

from heliotrope_server.answerer import SOURCE_EXPLORE, SOURCE_FRESH, SOURCE_POPULAR, Question
from heliotrope_server.catalogue_log import DELETE, CatalogueChanges, encode_upsert
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.explanation import FRESHNESS
from heliotrope_server.list_maker import plan
from heliotrope_server.list_rules import NO_RULES, ListRules
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.record_log import RecordLog
from tests.server import worlds
from tests.server.worlds import CatalogItem

NOW_S = 1.7e9
HOUR_S = 3600.0


def clock():
    return NOW_S


async def ranking(engine, user="u", *, time_s=NOW_S):
    """All items in the order of their scores, by an engine question without rules."""
    answer = (await engine.recommend(Question(user, 1000, time_s=time_s, rules=NO_RULES))).result
    return answer.item_ids, dict(zip(answer.item_ids, answer.scores, strict=True))


async def upsert(engine, *items, added_s=NOW_S, bias=0.0):
    """Writes items into the catalogue log as the servicer does; an item is (id, vector, provider)."""
    log = RecordLog(engine.changes.folder)
    entries = [
        DeltaItem(CatalogItem(item_id, "t", "", ("c1",), provider), vector, None, bias, "", "none", added_s)
        for item_id, vector, provider in items
    ]
    await log.append([encode_upsert(entry) for entry in entries], lambda first: None)
    log.close()
    engine.catch_up_catalogue()


def number(item_id):
    return int(item_id[1:])


@pytest.mark.parametrize("with_index", [False, True])
async def test_limits_hold_and_the_best_that_they_admit_are_taken(tmp_path, with_index):
    served = worlds.catalogue(tmp_path, labelled=True, with_index=with_index)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        ids, scores = await ranking(engine)
        rules = ListRules(max_per_category=4, max_provider_share=0.25)
        answer = (await engine.recommend(Question("u", 8, rules=rules, explain=True))).result
        wanted, categories, providers = [], Counter(), Counter()
        for item_id in ids:
            own = [f"c{number(item_id) % 7}", number(item_id) % 2]
            provider = number(item_id) % 5
            if (
                len(wanted) == 8
                or any(categories[name] == 4 for name in own)
                or (provider and providers[provider] == 2)
            ):
                continue
            wanted.append(item_id)
            categories.update(own)
            providers[provider] += 1
        assert answer.item_ids == wanted != ids[:8]
        for item_id, score, parts in zip(answer.item_ids, answer.scores, answer.explanations, strict=True):
            assert score == pytest.approx(scores[item_id], abs=1e-5)
            assert sum(part.value for part in parts) == pytest.approx(score, abs=1e-5)
        assert set(answer.propensities) == {1.0}
        assert set(answer.sources) == {SOURCE_POPULAR}


async def test_a_list_that_the_rules_leave_short_looks_further_down(tmp_path):
    served = worlds.catalogue(tmp_path, items=2000, labelled=True)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        # Every item is even or odd, so two places of each are all there is.
        short = (await engine.recommend(Question("u", 10, rules=ListRules(max_per_category=2)))).result
        assert len(short.item_ids) == 4
        # One provider's items lie behind all others: they are reached, one by one, by asking for more candidates.
        ids, _ = await ranking(engine)
        far = [item_id for item_id in ids if number(item_id) % 5 == 1]
        excluded = [item_id for item_id in ids if number(item_id) % 5 in (0, 2)]
        question = Question("u", 3, excluded_item_ids=[*excluded, *far[:-1]], rules=ListRules(max_provider_share=0.01))
        answer = (await engine.recommend(question)).result
        assert [number(item_id) % 5 for item_id in sorted(answer.item_ids, key=lambda i: number(i) % 5)] == [1, 3, 4]
        assert far[-1] in answer.item_ids


async def test_items_of_the_delta_have_labels_too(tmp_path):
    served = worlds.catalogue(tmp_path, labelled=True, live_popularity_weight=0.0)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        vectors = np.random.default_rng(0).normal(size=(5, served.dimension)).astype(np.float32)
        await upsert(engine, *[(f"n{place}", vector, "newcomer") for place, vector in enumerate(vectors)], bias=30.0)
        assert set((await ranking(engine))[0][:5]) == {f"n{place}" for place in range(5)}
        answer = (await engine.recommend(Question("u", 10, rules=ListRules(max_provider_share=0.2)))).result
        assert sum(item_id.startswith("n") for item_id in answer.item_ids) == 2


async def test_diversity_spreads_a_list_and_scores_stay_exact(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 40, users=3, now_s=NOW_S))
        spread = {}
        for diversity in (0.0, 0.8):
            cosines = []
            for user in ("u0", "u1", "u2", "nobody"):
                _, scores = await ranking(engine, user)
                rules = ListRules(diversity=diversity, relevance_floor=0.0)
                answer = (await engine.recommend(Question(user, 10, rules=rules, time_s=NOW_S))).result
                assert [scores[item_id] for item_id in answer.item_ids] == pytest.approx(answer.scores, abs=1e-5)
                vectors = np.array([served.row_vector(row) for row in answer.rows.tolist()])
                unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                cosines.append((unit @ unit.T)[np.triu_indices(10, 1)].mean())
                if not diversity:
                    assert answer.scores == sorted(answer.scores, reverse=True)
            spread[diversity] = np.mean(cosines)
        assert spread[0.8] < spread[0.0]


async def test_exploration_shows_its_propensities_and_touches_the_last_place_alone(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock, explore_share=0.5) as engine:
        ids, _ = await ranking(engine)
        explored = 0
        for answer in await engine.recommend_many([Question("u", 10, time_s=NOW_S)] * 600):
            assert answer.item_ids[:9] == ids[:9]
            assert answer.propensities[:9] == [1.0] * 9
            assert set(answer.sources[:9]) == {SOURCE_POPULAR}
            if answer.sources[9] == SOURCE_EXPLORE:
                explored += 1
                assert answer.item_ids[9] in ids[10:60]
                assert answer.propensities[9] == pytest.approx(0.5 / 50)
            else:
                assert (answer.item_ids[9], answer.propensities[9]) == (ids[9], 0.5)
        # Request ids differ from run to run: eight standard errors.
        assert abs(explored - 300) < 8 * np.sqrt(600 / 4)
        everything = (await engine.recommend(Question("u", 200))).result
        assert set(everything.propensities) == {1.0}


def test_the_same_request_id_makes_the_same_plan():
    rules = ListRules(explore_share=0.3)
    plans = [plan(rules, 10, f"id-{number}") for number in range(200)]
    assert plans == [plan(rules, 10, f"id-{number}") for number in range(200)]
    assert {made.asked for made in plans} == {11, 60}
    assert plan(NO_RULES, 10, "x").asked == 10


def boosted(added_s, weight=2.0, half_life_s=HOUR_S):
    return weight * 2.0 ** (-(NOW_S - added_s) / half_life_s)


async def test_new_items_are_boosted_within_their_quota_and_say_so(tmp_path):
    served = worlds.catalogue(tmp_path)
    freshness = {"freshness_weight": 2.0, "freshness_half_life_s": HOUR_S, "freshness_quota": 0.2}
    async with worlds.engine(tmp_path, served, wall_clock=clock, **freshness) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 40, users=1, now_s=NOW_S))
        rng = np.random.default_rng(3)
        ages_s = np.sort(rng.uniform(0, 8 * HOUR_S, size=40))[::-1]
        for place, age_s in enumerate(ages_s):
            vector = rng.normal(size=served.dimension).astype(np.float32)
            await upsert(engine, (f"n{place}", vector, ""), added_s=NOW_S - age_s)
        for user in ("u0", "nobody"):
            long = (await engine.recommend(Question(user, 400, time_s=NOW_S, explain=True, include_seen=True))).result
            boost, plain = {}, {}
            for item_id, score, parts in zip(long.item_ids, long.scores, long.explanations, strict=True):
                assert sum(part.value for part in parts) == pytest.approx(score, abs=1e-5)
                boost[item_id] = sum(part.value for part in parts if part.kind == FRESHNESS)
                plain[item_id] = score - boost[item_id]
            for place, age_s in enumerate(ages_s):
                expected = boosted(NOW_S - age_s) if age_s <= 5 * HOUR_S else 0.0
                assert boost[f"n{place}"] == pytest.approx(expected)
            for wanted in (4, 10, 20):
                answer = (await engine.recommend(Question(user, wanted, time_s=NOW_S, include_seen=True))).result
                base = sorted(plain, key=lambda item_id: -plain[item_id])[:wanted]
                expected, extras = [], 0
                for item_id in sorted(plain, key=lambda item_id: -(plain[item_id] + boost[item_id])):
                    if item_id not in base:
                        if not boost[item_id] or extras == int(0.2 * wanted + 1e-9):
                            continue
                        extras += 1
                    expected.append(item_id)
                assert answer.item_ids == expected[:wanted]
                flags = [source == SOURCE_FRESH for source in answer.sources]
                assert flags == [item_id not in base for item_id in answer.item_ids]
                assert sum(flags) <= 0.2 * wanted


async def test_with_limits_diversity_and_exploration_the_quota_still_holds(tmp_path):
    served = worlds.catalogue(tmp_path, labelled=True)
    async with worlds.engine(
        tmp_path, served, wall_clock=clock, freshness_weight=5.0, freshness_quota=0.3, explore_share=0.5
    ) as engine:
        rng = np.random.default_rng(3)
        fresh = [(f"n{place}", rng.normal(size=served.dimension).astype(np.float32), "x") for place in range(30)]
        await upsert(engine, *fresh)
        rules = ListRules(diversity=0.5, relevance_floor=0.0, max_provider_share=0.5, explore_share=0.5)
        for answer in await engine.recommend_many([Question("u", 10, rules=rules, time_s=NOW_S)] * 40):
            assert len(answer.item_ids) == len(set(answer.item_ids)) == 10
            assert sum(item_id.startswith("n") for item_id in answer.item_ids) <= 3
            assert answer.sources.count(SOURCE_FRESH) <= 3


async def test_an_item_is_new_once_even_if_it_is_removed_and_the_boost_outlives_a_restart(tmp_path):
    served = worlds.catalogue(tmp_path)
    settings = {"freshness_weight": 2.0}
    async with worlds.engine(tmp_path, served, wall_clock=clock, **settings) as engine:
        assert engine.added_s("brand new") == NOW_S
        assert engine.added_s("i3") == 0.0
        vector = np.ones(served.dimension, dtype=np.float32)
        await upsert(engine, ("n1", vector, ""), added_s=NOW_S - 60)
        assert engine.added_s("n1") == NOW_S - 60
        log = RecordLog(engine.changes.folder)
        await log.append([[DELETE, "n1"], [DELETE, "i3"]], lambda first: None)
        log.close()
        engine.catch_up_catalogue()
        assert (engine.added_s("n1"), engine.added_s("i3")) == (NOW_S - 60, 0.0)
        assert "n1" not in (await ranking(engine))[0]
    again = CatalogueChanges(tmp_path / "catalogue")
    again.catch_up()
    assert again.added_s == {"n1": NOW_S - 60}


async def test_a_log_written_before_items_had_providers_is_read(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        entry = DeltaItem(CatalogItem("n1", "t"), np.ones(served.dimension, np.float32), None, 0.0, "", "none")
        log = RecordLog(engine.changes.folder)
        await log.append([encode_upsert(entry)[:10]], lambda first: None)
        log.close()
        engine.catch_up_catalogue()
        assert engine.catalogue.item(engine.require_item("n1")) == CatalogItem("n1", "t")
        assert engine.changes.added_s == {}


@pytest.mark.parametrize(
    ("rules", "wanted", "named"),
    [
        (ListRules(diversity=1.5), 10, "diversity must be 0 to 1, not 1.5"),
        (ListRules(diversity=float("nan")), 10, "diversity must be 0 to 1, not nan"),
        (ListRules(relevance_floor=-0.1), 10, "relevance_floor must be 0 to 1, not -0.1"),
        (ListRules(max_per_category=101), 10, "max_per_category must be 1 to 100, or 0 for no limit, not 101"),
        (ListRules(max_provider_share=0.0), 10, "max_provider_share must be above 0 and at most 1, not 0"),
        (ListRules(explore_share=0.6), 10, "explore_share must be 0 to 0.5, not 0.6"),
        (ListRules(diversity=0.5), 101, "with diversity, count must be 1 to 100, not 101"),
    ],
)
async def test_a_rule_outside_of_its_limits_is_named(tmp_path, rules, wanted, named):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served) as engine:
        with pytest.raises(InvalidArgumentError, match=named):
            await engine.recommend(Question("u", wanted, rules=rules))
