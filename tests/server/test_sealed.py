"""The delta sealed into lists beside those of the index, while it grows to the size of the snapshot and beyond.

The oracle is exact scoring of everything by the definition.
"""

import numpy as np
import pytest

from heliotrope_indexer.search import kernel_problem
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import compiled_ranking, filtered
from heliotrope_server import live_view as live_view_module
from heliotrope_server.allowed_rows import AllowedRows, BaseRows
from heliotrope_server.answerer import Question
from heliotrope_server.catalogue_log import encode_upsert
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.record_log import RecordLog
from heliotrope_server.retriever import FaissRetriever, KernelRetriever, make_retriever
from heliotrope_server.scoring import Query, exact_scores
from tests.server import worlds

ITEMS, DIMENSION, NOW_S = 2_000, 16, 1.7e9
NONE = np.empty(0, dtype=np.int64)
pytestmark = pytest.mark.skipif(kernel_problem() is not None, reason="the kernel was not built")


@pytest.fixture(params=[0, 200], ids=["no head", "head"])
def served(request, tmp_path):
    catalogue = worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, with_index=True, head=request.param)
    # These vectors are in no clusters.
    search = catalogue.parameters.search.model_copy(update={"nprobe": 16, "margin": 5.0})
    catalogue.parameters = catalogue.parameters.model_copy(update={"search": search})
    return catalogue


def entry(catalogue, item_id, vector, bias=0.0):
    """An item that will have this very vector (d,): what its text says of it is made up for."""
    pooled = np.ones(catalogue.snapshot.projection.shape[1], dtype=np.float32)
    residual = (vector - catalogue.project(pooled[None])[0]).astype(np.float32)
    return DeltaItem(CatalogItem(item_id, "t"), pooled, residual, bias, catalogue.version, "none")


def grow(catalogue, rng, count, first=0):
    for number in range(first, first + count):
        catalogue.upsert(entry(catalogue, f"new{number}", rng.normal(size=DIMENSION).astype(np.float32)))


def queries(rng, count, wanted=10, **more):
    return [Query(rng.normal(size=DIMENSION).astype(np.float32), wanted, NONE)._replace(**more) for _ in range(count)]


def recall(catalogue, retriever, asked, live):
    """Scores must be exact, and lists full, in order and without the dead; returns how many of the best they hold."""
    shares = []
    for query, ranking in zip(asked, retriever.rank(asked, live), strict=True):
        scores = exact_scores(catalogue, live, query, np.arange(catalogue.size))
        there = min(query.wanted, int(np.isfinite(scores).sum()))
        assert len(ranking.rows) == len(set(ranking.rows)) == there
        np.testing.assert_allclose(ranking.scores, scores[ranking.rows], rtol=1e-4, atol=1e-5)
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
        shares.append(np.isin(ranking.rows, np.argsort(-scores)[:there]).mean())
    return np.mean(shares)


def sealed(retriever):
    return retriever._ranking._sealed


def test_recall_holds_at_every_stage_while_items_come_go_move_and_trend(served, monkeypatch):
    monkeypatch.setattr(live_view_module, "TRENDING", 32)
    rng, retriever = np.random.default_rng(0), make_retriever(served)
    plain, recalls, added = FaissRetriever(served), [], 0
    while added < ITEMS:
        grow(served, rng, count := int(rng.integers(1, 500)), added)
        added += count
        for _ in range(20):
            # Of the snapshot, of the tail and of what was sealed: replaced, removed, moved and moved back.
            item_id = served.item_ids[int(rng.integers(served.size))]
            vector = rng.normal(size=DIMENSION).astype(np.float32)
            chance = rng.random()
            if chance < 0.3:
                served.upsert(entry(served, item_id, vector, bias=float(rng.normal())))
            elif chance < 0.6:
                served.delete(item_id)
            else:
                served.set_residual(item_id, vector if chance < 0.8 else None)
        counts = np.zeros(served.size)
        busy = rng.choice(served.size, size=served.size // 10, replace=False)
        counts[busy] = rng.exponential(20.0, size=len(busy))
        live = live_view(served, counts)
        asked = queries(rng, 30, excluded=rng.choice(served.size, size=50, replace=False))
        before = recall(served, retriever, asked, live)
        retriever.follow()
        after = recall(served, retriever, asked, live)
        assert len(served.delta) - sealed(retriever) < compiled_ranking.TAIL
        recalls += [before, after, recall(served, plain, asked, live)]
    assert min(recalls) >= 0.97
    assert sealed(retriever) > 0.8 * ITEMS


def test_what_is_sealed_in_one_go_is_found_like_what_was_sealed_in_many(served):
    rng, followed = np.random.default_rng(1), make_retriever(served)
    for number in range(0, 3_000, 100):
        grow(served, rng, 100, number)
        followed.follow()
    at_once, live = make_retriever(served), live_view(served, np.zeros(served.size))
    assert sealed(at_once) == len(served.delta)
    asked = queries(rng, 40)
    assert recall(served, followed, asked, live) >= 0.97
    assert recall(served, at_once, asked, live) >= 0.97


def test_a_sealed_item_that_becomes_the_most_popular_of_all_comes_first(served):
    rng = np.random.default_rng(2)
    grow(served, rng, 600)
    retriever = make_retriever(served)
    (query,) = queries(rng, 1)
    counts = np.zeros(served.size)
    scores = exact_scores(served, live_view(served, counts), query, np.arange(served.size))
    worst = ITEMS + int(np.argmin(scores[ITEMS:]))
    counts[worst] = 1e40
    (ranking,) = retriever.rank([query], live_view(served, counts))
    assert ranking.rows[0] == worst


def test_sealed_items_are_missed_for_no_boost_outside_the_trending(served, monkeypatch):
    monkeypatch.setattr(live_view_module, "TRENDING", 16)
    rng = np.random.default_rng(3)
    grow(served, rng, 1_000)
    live = live_view(served, rng.uniform(1.0, 1e6, size=served.size), 1.0)
    assert recall(served, make_retriever(served), queries(rng, 30), live) >= 0.97


def test_a_residual_of_a_sealed_item_counts_from_the_next_question_until_it_is_taken_back(served):
    rng = np.random.default_rng(4)
    grow(served, rng, 600)
    retriever = make_retriever(served)
    (query,) = queries(rng, 1)
    length = np.linalg.norm(query.vector)

    def first():
        (ranking,) = retriever.rank([query], live_view(served, np.zeros(served.size)))
        return served.item_ids[ranking.rows[0]]

    best = first()
    served.set_residual("new300", query.vector / length * 50)
    assert first() == "new300"
    served.set_residual("new300", None)
    assert first() == best
    # The codes are of the item alone, though it was moved when it was sealed.
    served.upsert(entry(served, "far", query.vector / length * 30))
    served.set_residual("far", -query.vector / length * 60)
    grow(served, rng, 600, first=600)
    retriever.follow()
    assert sealed(retriever) == len(served.delta)
    assert first() == best
    served.set_residual("far", None)
    assert first() == "far"


def test_few_items_of_biases_that_the_codes_cannot_hold_stay_exact(served):
    """As those of the head are that are replaced while serving."""
    rng = np.random.default_rng(5)
    grow(served, rng, 600)
    heavy = np.argsort(-served.base_bias)[:100].tolist()
    for row in heavy:
        served.upsert(entry(served, served.item_ids[row], served.base_vectors[row], bias=9.0))
    retriever, live = make_retriever(served), live_view(served, np.zeros(served.size))
    assert retriever._ranking._unsealable.tolist() == list(range(ITEMS + 600, ITEMS + 700))
    assert recall(served, retriever, queries(rng, 30, wanted=40), live) >= 0.99
    for row in heavy[:50]:
        served.delete(served.item_ids[row])
    live = live_view(served, np.zeros(served.size))
    assert recall(served, retriever, queries(rng, 30, wanted=40), live) >= 0.99


@pytest.mark.parametrize("listed_delta", [0, 2_000])
def test_suggested_and_wide_and_narrow_filtered_questions_find_sealed_items(served, monkeypatch, listed_delta):
    monkeypatch.setattr(filtered, "LISTED_DELTA", listed_delta)
    rng = np.random.default_rng(6)
    grow(served, rng, 1_500)
    retriever, live = make_retriever(served), live_view(served, np.zeros(served.size))
    suggested = np.sort(rng.choice(served.size, size=60, replace=False))
    gains = rng.exponential(3.0, size=60).astype(np.float32)
    assert recall(served, retriever, queries(rng, 30, suggestions=Suggestions(suggested, gains)), live) >= 0.97
    for share in (0.99, 0.5, 0.01):
        allowed = AllowedRows(BaseRows(rng.random(ITEMS) < share), rng.random(1_500) < share)
        for asked in (queries(rng, 30, allowed=allowed), queries(rng, 5, wanted=40, allowed=allowed)):
            asked = [query._replace(excluded=rng.choice(served.size, size=99, replace=False)) for query in asked]
            assert recall(served, retriever, asked, live) >= 0.97


def test_a_filter_that_takes_away_what_the_user_likes_leaves_the_best_of_the_rest_of_the_delta(served, monkeypatch):
    monkeypatch.setattr(filtered, "LISTED_DELTA", 0)
    rng = np.random.default_rng(9)
    grow(served, rng, 1_500)
    retriever, live = make_retriever(served), live_view(served, np.zeros(served.size))
    for query in queries(rng, 20):
        tastes = served.delta_vectors @ query.vector
        allowed = AllowedRows(BaseRows(rng.random(ITEMS) < 0.1), tastes < np.quantile(tastes, 0.3))
        assert recall(served, retriever, [query._replace(allowed=allowed)], live) >= 0.9


def test_dead_rows_are_not_sealed_and_a_short_tail_is_left_alone(served):
    rng, retriever = np.random.default_rng(7), make_retriever(served)
    assert isinstance(retriever, KernelRetriever)
    for _ in range(compiled_ranking.TAIL):
        served.upsert(entry(served, "again", rng.normal(size=DIMENSION).astype(np.float32)))
    retriever.follow()
    assert sealed(retriever) == compiled_ranking.TAIL
    assert len(retriever._ranking._kernel._scanned.added) <= 1
    grow(served, rng, compiled_ranking.TAIL - 1)
    retriever.follow()
    assert sealed(retriever) == compiled_ranking.TAIL


async def test_an_engine_seals_what_is_upserted_what_a_restart_finds_and_what_a_swap_lays_over(tmp_path, served):
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(700, DIMENSION)).astype(np.float32)
    event = UserEvent("u", "e", EventKind.CLICK, "i4", 1.0, round((NOW_S - 60) * 1e6))

    async def upsert(engine, start, end):
        log = RecordLog(engine.changes.folder)
        entries = [entry(served, f"new{number}", vectors[number]) for number in range(start, end)]
        await log.append([encode_upsert(each) for each in entries], lambda first: None)
        log.close()
        engine.catch_up_catalogue()

    async def ask(engine):
        catalogue, answerer = engine.catalogue, engine.answerer
        answer = (await engine.recommend(Question("u", 50))).result
        live = live_view(catalogue, np.zeros(catalogue.size))
        query = answer.interests.reshape(-1) @ answerer.stacked_matrices
        scores = exact_scores(catalogue, live, Query(query, 50, NONE), answer.rows)
        # The event counts for the popularity of its item alone, which is not in the list.
        np.testing.assert_allclose(answer.scores, scores, rtol=1e-4, atol=1e-4)
        return answer.item_ids

    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S) as engine:
        await engine.record([event])
        for start in range(0, 700, 70):
            await upsert(engine, start, start + 70)
            assert len(engine.catalogue.delta) - sealed(engine.answerer._retriever) < compiled_ranking.TAIL
        found = await ask(engine)
        assert any(item_id.startswith("new") for item_id in found)
    again = LiveCatalogue(served.snapshot)
    async with worlds.engine(tmp_path, again, wall_clock=lambda: NOW_S) as engine:
        assert sealed(engine.answerer._retriever) == 700
        # Another margin for the error of the codes: rows at the end of the list may differ.
        assert len(set(found) & set(await ask(engine))) >= 49
        engine.adopt(LiveCatalogue(served.snapshot))
        assert sealed(engine.answerer._retriever) == 700
        assert len(set(found) & set(await ask(engine))) >= 49
