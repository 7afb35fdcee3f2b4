"""Ranking among admitted rows, with exact scoring of everything by the definition as the oracle."""

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import allowed_rows
from heliotrope_server.allowed_rows import AllowedRows, BaseRows
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.retriever import make_retriever
from heliotrope_server.scoring import Query, exact_scores
from tests.server import worlds

ITEMS, DIMENSION = 4000, 16
NONE = np.empty(0, dtype=np.int64)
SHARES = [1.0, 0.97, 0.5, 0.1, 0.01, 0.001]


@pytest.fixture(params=["exact", "listed", "searched", "searched with a head"])
def served(request, tmp_path, monkeypatch):
    """Every way to rank: all rows, the admitted ones one by one, and by the index however few they are."""
    if request.param.startswith("searched"):
        monkeypatch.setattr(allowed_rows, "LISTED", 0)
    indexed = {} if request.param == "exact" else {"with_index": True, "head": 200 if "head" in request.param else 0}
    return worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, **indexed)


def drawn(catalogue, share, seed=0):
    """Rows of the snapshot by chance, at least 4, and every second row of the delta."""
    mask = np.random.default_rng(seed).random(catalogue.base_count) < share
    mask[:4] = True
    return AllowedRows(BaseRows(mask), np.arange(catalogue.size - catalogue.base_count) % 2 == 0)


def queries(count, allowed, wanted=10, excluded=NONE, seed=1, suggestions=None):
    rng = np.random.default_rng(seed)
    return [
        Query(rng.normal(size=DIMENSION).astype(np.float32), wanted, excluded, suggestions, allowed)
        for _ in range(count)
    ]


def oracle(catalogue, query, live):
    """Every row's score by the definition, in float64; -inf for what must not be in the list."""
    scores = np.full(catalogue.size, -np.inf)
    gains = np.zeros(catalogue.size)
    if query.suggestions is not None:
        gains[query.suggestions.rows] = query.suggestions.gains
    admitted = query.allowed.mask
    for row in catalogue.living_rows():
        if admitted[row]:
            scores[row] = (
                catalogue.served_vector(row).astype(np.float64) @ query.vector.astype(np.float64)
                + catalogue.bias(row)
                + live.boosts[row]
                + gains[row]
                + catalogue.parameters.intercept
            )
    scores[query.excluded] = -np.inf
    return scores


def assert_best(catalogue, asked, live, least_recall=0.97):
    """Complete, exact, in order, and the best there are."""
    recalls = []
    for query, ranking in zip(asked, make_retriever(catalogue).rank(asked, live), strict=True):
        scores = oracle(catalogue, query, live)
        there = int(np.isfinite(scores).sum())
        assert len(ranking.rows) == len(set(ranking.rows)) == min(query.wanted, there)
        np.testing.assert_allclose(ranking.scores, scores[ranking.rows], rtol=1e-4, atol=1e-5)
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
        best = np.argsort(-scores)[: min(query.wanted, there)]
        recalls.append(len(set(ranking.rows) & set(best)) / max(len(best), 1))
    assert np.mean(recalls) >= least_recall


@pytest.mark.parametrize("share", SHARES)
def test_the_best_of_the_admitted_are_found_whatever_their_share(served, share):
    live = live_view(served, np.zeros(served.size))
    assert_best(served, queries(30, drawn(served, share)), live)


@pytest.mark.parametrize("low", [0.5, 0.9])
def test_the_best_are_found_where_the_filter_takes_away_what_the_user_likes(served, low):
    asked = []
    for query in queries(20, None):
        # Only the rows that this very user likes least are left.
        tastes = served.base_vectors @ query.vector
        mask = tastes < np.quantile(tastes, 1.0 - low)
        asked.append(query._replace(allowed=AllowedRows(BaseRows(mask), np.empty(0, dtype=bool))))
    assert_best(served, asked, live_view(served, np.zeros(served.size)))


def test_live_terms_the_delta_residuals_and_dead_rows_count(served):
    rng = np.random.default_rng(3)
    for place in range(30):
        vector = rng.normal(size=DIMENSION).astype(np.float32)
        old = f"i{place}" if place % 3 == 0 else f"new{place}"
        entry = DeltaItem(CatalogItem(old, "t"), vector, None, 0.1 * place, "", "none")
        served.upsert(entry)
    for number in range(100, 140):
        served.delete(f"i{number}")
    for number in range(200, 220):
        served.set_residual(f"i{number}", rng.normal(size=DIMENSION).astype(np.float32))
    counts = np.zeros(served.size)
    busy = rng.choice(served.size, size=700, replace=False)
    counts[busy] = rng.exponential(20.0, size=700)
    live = live_view(served, counts)
    suggestions = Suggestions(np.arange(300, 900, 7), rng.exponential(size=86).astype(np.float32))
    excluded = rng.choice(served.size, size=150, replace=False)
    for share in SHARES:
        asked = queries(10, drawn(served, share), excluded=excluded, suggestions=suggestions)
        assert_best(served, asked, live)


def test_few_admitted_rows_all_come_however_they_score(served):
    mask = np.zeros(ITEMS, dtype=bool)
    mask[[5, 700, 3999]] = True
    allowed = AllowedRows(BaseRows(mask), np.empty(0, dtype=bool))
    live = live_view(served, np.zeros(served.size))
    (ranking,) = make_retriever(served).rank(queries(1, allowed, excluded=np.array([700])), live)
    assert sorted(ranking.rows) == [5, 3999]
    (none,) = make_retriever(served).rank(queries(1, allowed, excluded=np.array([5, 700, 3999])), live)
    assert len(none.rows) == len(none.scores) == 0


def test_long_lists_and_long_exclusions_are_complete(served):
    live = live_view(served, np.zeros(served.size))
    allowed = drawn(served, 0.5)
    admitted = np.flatnonzero(allowed.mask)
    # All but 600 of the admitted rows were seen, and all of the 600 are wanted.
    assert_best(served, queries(3, allowed, wanted=600, excluded=admitted[:-600]), live)
    assert_best(served, queries(3, allowed, wanted=1000), live)


def test_a_batch_equals_its_single_queries_filtered_or_not(served):
    live = live_view(served, np.zeros(served.size))
    asked = [*queries(6, drawn(served, 0.1)), *queries(3, None, seed=2), *queries(5, drawn(served, 0.5, 1), seed=3)]
    asked = [asked[place] for place in np.random.default_rng(0).permutation(len(asked))]
    retriever = make_retriever(served)
    for query, ranking in zip(asked, retriever.rank(asked, live), strict=True):
        alone = retriever.rank([query], live)[0]
        np.testing.assert_array_equal(alone.rows, ranking.rows)
        np.testing.assert_allclose(alone.scores, ranking.scores, rtol=1e-5, atol=1e-6)


def test_scores_of_single_rows_are_those_of_the_ranking(served):
    live = live_view(served, np.zeros(served.size))
    (query,) = queries(1, drawn(served, 0.5))
    scores = exact_scores(served, live, query, np.arange(served.size))
    np.testing.assert_allclose(scores, oracle(served, query, live), rtol=1e-4, atol=1e-5)


def test_what_is_popular_among_the_admitted_is_found_behind_what_is_popular_elsewhere(served):
    """More rows than are kept as trending are popular, and those that are kept are not admitted."""
    rng = np.random.default_rng(5)
    allowed = drawn(served, 0.3)
    admitted, others = np.flatnonzero(allowed.mask), np.flatnonzero(~allowed.mask)
    counts = np.zeros(served.size)
    counts[rng.choice(others, size=600, replace=False)] = 2e6
    popular = rng.choice(admitted, size=40, replace=False)
    counts[popular] = 1e6
    live = live_view(served, counts, 3.0)
    assert not np.isin(live.trending, admitted).any()
    assert_best(served, queries(10, allowed), live)
