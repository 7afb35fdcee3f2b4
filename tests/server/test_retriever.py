"""One contract for both retrievers, with exact scoring of everything by the definition as the oracle."""

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import live_view as live_view_module
from heliotrope_server import retriever as retriever_module
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import live_view
from heliotrope_server.retriever import FaissRetriever, make_retriever
from heliotrope_server.scoring import Query
from tests.server import worlds

ITEMS, DIMENSION = 1500, 16
NONE = np.empty(0, dtype=np.int64)


@pytest.fixture(params=["exact", "kernel", "kernel head", "plain", "plain head"])
def served(request, tmp_path, monkeypatch):
    """A catalogue, and the retriever that make_retriever makes of it with a compiler and without."""
    by, *head = request.param.split()
    indexed = {} if by == "exact" else {"with_index": True, "head": 200 if head else 0}
    if by == "plain":
        monkeypatch.setattr(retriever_module, "kernel_problem", lambda: "not built")
    return worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, **indexed)


def counts(catalogue, busy=0, seed=0):
    values = np.zeros(catalogue.size)
    rng = np.random.default_rng(seed)
    values[rng.choice(catalogue.size, size=busy, replace=False)] = rng.exponential(20.0, size=busy)
    return values


def oracle(catalogue, query, live_counts):
    """Every living row's score by the definition, in float64; excluded rows are -inf."""
    gamma = catalogue.parameters.live_popularity_weight
    scores = np.full(catalogue.size, -np.inf)
    for row in catalogue.living_rows():
        scores[row] = (
            catalogue.row_vector(row).astype(np.float64) @ query.vector.astype(np.float64)
            + catalogue.bias(row)
            + gamma * np.log1p(live_counts[row])
            + catalogue.parameters.intercept
        )
    scores[query.excluded] = -np.inf
    return scores


def queries(count, wanted=10, excluded=NONE, seed=1):
    rng = np.random.default_rng(seed)
    return [Query(rng.normal(size=DIMENSION).astype(np.float32), wanted, excluded) for _ in range(count)]


def recall(ranking, scores, wanted):
    return len(set(ranking.rows) & set(np.argsort(-scores)[:wanted])) / wanted


def test_scores_are_exact_and_in_order_and_the_best_are_found(served):
    live_counts = counts(served, busy=40)
    asked = queries(20)
    found = make_retriever(served).rank(asked, live_view(served, live_counts))
    recalls = []
    for query, ranking in zip(asked, found, strict=True):
        scores = oracle(served, query, live_counts)
        np.testing.assert_allclose(ranking.scores, scores[ranking.rows], rtol=1e-4, atol=1e-5)
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
        assert len(set(ranking.rows)) == 10
        recalls.append(recall(ranking, scores, 10))
    assert np.mean(recalls) >= 0.97


def test_a_batch_equals_its_single_queries(served):
    asked = queries(9) + queries(3, wanted=120, seed=2)
    live = live_view(served, counts(served, busy=300))
    retriever = make_retriever(served)
    together = retriever.rank(asked, live)
    for query, ranking in zip(asked, together, strict=True):
        alone = retriever.rank([query], live)[0]
        np.testing.assert_array_equal(alone.rows, ranking.rows)
        np.testing.assert_allclose(alone.scores, ranking.scores, rtol=1e-5)


def test_an_item_that_is_suddenly_popular_is_found_however_far_it_was(served):
    query = queries(1)[0]
    worst = int(np.argmin(oracle(served, query, counts(served))))
    live_counts = counts(served)
    live_counts[worst] = 1e40  # boost of 0.3 * 92
    ranking = make_retriever(served).rank([query], live_view(served, live_counts))[0]
    assert ranking.rows[0] == worst
    assert ranking.certified


def test_excluded_and_removed_rows_never_appear_and_the_count_is_still_met(served):
    plain = queries(1, wanted=30)[0]
    retriever = make_retriever(served)
    best = retriever.rank([plain], live_view(served, counts(served)))[0].rows
    served.delete(served.item_ids[best[0]])
    query = plain._replace(excluded=best[1:20].astype(np.int64))
    ranking = retriever.rank([query], live_view(served, counts(served)))[0]
    assert not set(ranking.rows) & set(best[:20])
    assert len(ranking.rows) == 30


def test_a_user_who_has_seen_nearly_everything_still_gets_the_rest(served):
    query = queries(1, wanted=10)[0]
    left = np.array([3, 700, 1499])
    query = query._replace(excluded=np.setdiff1d(np.arange(ITEMS), left))
    ranking = make_retriever(served).rank([query], live_view(served, counts(served)))[0]
    assert set(ranking.rows) == set(left)


def test_new_items_are_found_at_once_and_a_replaced_one_stands_once(served):
    query = queries(1)[0]
    direction = query.vector / np.linalg.norm(query.vector)
    residual = direction * 50
    pooled = np.ones(DIMENSION, dtype=np.float32)
    for item_id in ("brand-new", "i7"):
        served.upsert(DeltaItem(CatalogItem(item_id, "t"), pooled, residual, 0.0, served.version, "none"))
    live_counts = counts(served)
    ranking = make_retriever(served).rank([query], live_view(served, live_counts))[0]
    assert {served.item_ids[row] for row in ranking.rows[:2]} == {"brand-new", "i7"}
    assert [served.item_ids[row] for row in ranking.rows].count("i7") == 1
    excluded = np.array([served.rows["i7"]])
    ranking = make_retriever(served).rank([query._replace(excluded=excluded)], live_view(served, live_counts))[0]
    assert "i7" not in [served.item_ids[row] for row in ranking.rows]


def test_more_than_the_catalogue_holds_gives_all_of_it(tmp_path):
    small = worlds.catalogue(tmp_path, items=5, dimension=DIMENSION)
    ranking = make_retriever(small).rank(queries(1, wanted=50), live_view(small, np.zeros(5)))[0]
    assert sorted(ranking.rows) == [0, 1, 2, 3, 4]


def test_a_live_term_that_may_be_missed_is_owned_up_to_and_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(live_view_module, "TRENDING", 16)
    served = worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, with_index=True, live_popularity_weight=10.0)
    live_counts = np.random.default_rng(0).uniform(1.0, 2.0, size=ITEMS)
    asked, live = queries(20, wanted=64), live_view(served, live_counts)
    retriever = FaissRetriever(served)
    narrow = retriever._rank_group(asked, live, 128)
    wide = retriever.rank(asked, live)
    assert not all(ranking.certified for ranking in narrow)
    assert sum(ranking.certified for ranking in wide) > sum(ranking.certified for ranking in narrow)
    truth = [oracle(served, query, live_counts) for query in asked]
    assert np.mean([recall(found, scores, 64) for found, scores in zip(wide, truth, strict=True)]) > np.mean(
        [recall(found, scores, 64) for found, scores in zip(narrow, truth, strict=True)]
    )
