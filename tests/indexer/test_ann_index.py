"""The measured index against exact search."""

from __future__ import annotations

import numpy as np
import pytest

from heliotrope_indexer import ann_index
from heliotrope_indexer.ann_index import build_index, exact_top, recall, search_top, served_queries
from heliotrope_indexer.errors import IndexQualityError
from heliotrope_indexer.index_rows import head_rows, index_rows
from heliotrope_indexer.parameters import SearchParameters


def some_vectors(n: int = 6_000, d: int = 31) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, d))
    norms = rng.lognormal(0.0, 0.4, size=(n, 1))
    vectors = norms * (centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, d))) / np.sqrt(d)
    return vectors.astype(np.float32), rng.pareto(2.0, n).astype(np.float32) * 0.1


def test_rows_are_padded_to_the_code_size() -> None:
    rows = index_rows(np.ones((2, 4), np.float32), np.array([5.0, 6.0], np.float32))
    assert rows.tolist() == [[1, 1, 1, 1, 5, 0], [1, 1, 1, 1, 6, 0]]
    assert index_rows(np.ones((1, 3), np.float32), np.ones(1, np.float32)).shape == (1, 4)


def test_exact_top_is_exact() -> None:
    rows, asked = some_vectors(500)[0], some_vectors(70)[0]
    best, _ = exact_top(rows, asked, 7)
    for query, found in zip(asked, best, strict=True):
        assert found.tolist() == sorted(range(500), key=lambda row: -float(rows[row] @ query))[:7]


def test_the_index_keeps_its_recall_on_fresh_queries() -> None:
    vectors, bias = some_vectors()
    matrices = np.stack([np.eye(31) * 2, np.eye(31)]).astype(np.float32)
    prior = vectors.mean(axis=0)
    done: list[int] = []
    measured = build_index(
        vectors,
        bias,
        served_queries(vectors, matrices, prior, (1.0, 1.0), count=60),
        threads=1,
        progress=done.append,
    )
    assert sum(done) == 9
    assert measured.recall_at_10 >= 0.97
    assert measured.recall_at_100 >= 0.95
    fresh = served_queries(vectors, matrices, prior, (1.0, 1.0), count=60, seed=9)
    rows, asked = index_rows(vectors, bias), index_rows(fresh, np.ones(60, np.float32))
    truth, _ = exact_top(rows, asked, 100)
    ids = head_rows(bias, measured.search.head)
    head = ids, rows[ids]
    found = [search_top(measured.index, rows, head, query, 100, measured.search) for query in asked]
    recall = np.mean([np.isin(one, other).mean() for one, other in zip(found, truth, strict=True)])
    assert recall >= 0.93


def test_a_recall_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_index, "_NPROBES", (1,))
    monkeypatch.setattr(ann_index, "_CANDIDATES", (100,))
    vectors, bias = some_vectors(3_000)
    with pytest.raises(IndexQualityError, match="up to nprobe 1 and 100 candidates"):
        build_index(vectors, bias, np.random.default_rng(1).normal(size=(20, 31)).astype(np.float32), threads=1)


def test_served_queries_are_what_the_formula_makes_of_one_event() -> None:
    vectors = np.eye(4, dtype=np.float32)
    queries = served_queries(vectors, np.eye(4, dtype=np.float32)[None], np.zeros(4, np.float32), (1.0,), count=30)
    assert queries.shape == (30, 4)
    assert np.isfinite(queries).all()
    assert (queries.sum(axis=1) < 1.0).all()


def test_a_head_is_tried_where_biases_decide_and_the_index_holds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, bias = some_vectors()
    asked = index_rows(vectors[:50], np.ones(50, np.float32))
    assert not ann_index._pays(0 * bias, 500, exact_top(index_rows(vectors, 0 * bias), asked, 10)[0])
    truth = exact_top(index_rows(vectors, 10 * bias), asked, 10)[0]
    assert ann_index._pays(10 * bias, 500, truth)
    assert not ann_index._pays(10 * bias, 2_000, truth)  # a third of the catalogue
    monkeypatch.setattr(ann_index, "_HEADS", (500,))
    measured = build_index(vectors, 10 * bias, vectors[:50], threads=1)
    assert measured.search.head in (0, 500)
    assert measured.index.ntotal == len(vectors) - measured.search.head
    assert measured.recall_at_10 >= 0.97


def test_the_head_is_the_rows_of_the_largest_bias_and_ties_go_to_the_first() -> None:
    assert head_rows(np.array([1.0, 3.0, 2.0, 3.0], np.float32), 3).tolist() == [1, 3, 2]
    assert len(head_rows(np.ones(4, np.float32), 0)) == 0


def test_recall_on_given_queries_is_what_the_build_measured_on_them() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(3_000, 15)).astype(np.float32)
    bias, queries = rng.normal(size=3_000).astype(np.float32), rng.normal(size=(50, 15)).astype(np.float32)
    built = build_index(vectors, bias, queries, threads=1)
    found = recall(built.index, vectors, bias, queries, built.search)
    assert found == pytest.approx((built.recall_at_10, built.recall_at_100))
    poor = SearchParameters(nprobe=1, candidates=100, margin=0.0)
    assert recall(built.index, vectors, bias, queries, poor)[0] < found[0]
