"""The compiled search against exact scoring by the definition."""

import shutil

import faiss
import numpy as np
import pytest

from heliotrope_indexer.ann_index import train_index
from heliotrope_indexer.index_rows import head_rows, index_rows
from heliotrope_indexer.search import Block, Extras, ScannedIndex, SearchKernel, kernel_problem

HAS_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
pytestmark = pytest.mark.skipif(kernel_problem() is not None and not HAS_COMPILER, reason="there is no C compiler")
NONE = np.empty(0, dtype=np.int64)


def world(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, d))
    vectors = (centres[rng.integers(20, size=n)] + 0.5 * rng.normal(size=(n, d))).astype(np.float32)
    return vectors, rng.normal(scale=0.3, size=n).astype(np.float32), rng.normal(size=(12, d)).astype(np.float32)


def index_of(vectors, bias, head=0, per_code=1, lists=16):
    rows = index_rows(vectors, bias)
    return train_index(rows, bias, lists, rows.shape[1] // per_code, head_rows(bias, head))


def test_where_there_is_a_compiler_the_kernel_was_built():
    assert kernel_problem() is None


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(("d", "per_code"), [(3, 1), (7, 2), (8, 1), (16, 1), (29, 2), (63, 2), (100, 1)])
def test_all_lists_with_a_wide_margin_give_the_exact_list(d, per_code, portable):
    vectors, bias, queries = world(2_000, d, seed=d)
    index = index_of(vectors, bias, per_code=per_code)
    kernel = SearchKernel(vectors, bias, NONE, intercept=-1.5)
    kernel.scan(ScannedIndex(index), 16, 20.0, portable=portable)
    best = kernel.best(queries, 30, [NONE] * len(queries))
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64) + bias - 1.5
    for place, scores in enumerate(exact):
        order = np.argsort(-scores)[:30]
        assert best.sizes[place] == 30
        assert set(best.rows[place]) == set(order)
        np.testing.assert_allclose(best.scores[place], scores[best.rows[place]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_bias", [True, False])
def test_the_ends_of_lists_are_left_out_where_bias_decides_and_nothing_is_missed(by_bias):
    vectors, bias, queries = world(4_000, 12)
    bias *= 20
    order = bias if by_bias else np.zeros_like(bias)
    kernel = SearchKernel(vectors, bias, NONE)
    scanned = ScannedIndex(train_index(index_rows(vectors, bias), order, 16, 14, NONE))
    for rows, most in zip(scanned._row_lists(), known(kernel, scanned, 2.0), strict=True):
        assert most.tolist() == [bias[rows[start:]].max() for start in range(0, len(rows), 32)]
        assert not by_bias or (np.diff(bias[rows]) <= 0.0).all()
    for margin in (2.0, 4.0, 30.0):
        most_bias = known(kernel, scanned, margin)
        cut = kernel.best(queries, 20, [NONE] * len(queries)).rows
        for most in most_bias:
            most[:] = np.inf
        np.testing.assert_array_equal(cut, kernel.best(queries, 20, [NONE] * len(queries)).rows)
    np.testing.assert_array_equal(cut, np.argsort(-(queries @ vectors.T + bias), axis=1)[:, :20])


def test_a_scan_ends_where_no_larger_bias_follows():
    vectors, bias, queries = world(4_000, 12)
    kernel = SearchKernel(vectors, bias, np.arange(4_000)[:20])
    most_bias = known(kernel, ScannedIndex(index_of(vectors, bias, lists=4)), 8.0)
    whole = kernel.best(queries, 5, [NONE] * len(queries))
    assert (whole.rows >= 20).any()
    for most in most_bias:
        most[:] = -1e9
    assert (kernel.best(queries, 5, [NONE] * len(queries)).rows < 20).all()


def known(kernel, scanned, margin):
    """What a kernel that scans all lists knows of the largest biases, to be changed."""
    kernel.scan(scanned, scanned.lists, margin)
    return scanned._most_bias


def test_both_ways_to_scan_find_the_same():
    vectors, bias, queries = world(5_000, 31)
    index = index_of(vectors, bias, head=100)
    found = []
    for portable in (False, True):
        kernel = SearchKernel(vectors, bias, head_rows(bias, 100))
        kernel.scan(ScannedIndex(index), 3, 1.0, portable=portable)
        found.append(kernel.best(queries, 10, [NONE] * len(queries)))
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


def test_the_sums_of_codes_are_those_of_faiss():
    """Few lists and no margin: what comes in is decided by the codes, which have to be read as FAISS wrote them."""
    vectors, bias, queries = world(4_000, 20)
    index = index_of(vectors, bias)
    kernel = SearchKernel(vectors, bias, NONE)
    kernel.scan(ScannedIndex(index), 4, 3.0)
    best = kernel.best(queries, 10, [NONE] * len(queries))
    parameters = faiss.SearchParametersIVF(nprobe=4)
    _, found = index.search(
        index_rows(queries, np.ones(len(queries), dtype=np.float32), index.d), 400, params=parameters
    )
    hits = 0
    for place, rows in enumerate(found):
        rows = rows[rows >= 0]
        scores = vectors[rows] @ queries[place] + bias[rows]
        hits += len(set(rows[np.argsort(-scores)[:10]]) & set(best.rows[place]))
    assert hits >= 0.97 * 10 * len(queries)


def test_a_wider_margin_and_more_lists_find_more():
    vectors, bias, queries = world(20_000, 24, seed=3)
    index = index_of(vectors, bias, per_code=2, lists=64)
    exact = np.argsort(-(queries @ vectors.T + bias), axis=1)[:, :10]

    def recall(probes, margin):
        kernel = SearchKernel(vectors, bias, NONE)
        kernel.scan(ScannedIndex(index), probes, margin)
        best = kernel.best(queries, 10, [NONE] * len(queries))
        return np.mean([len(set(own) & set(truth)) / 10 for own, truth in zip(best.rows, exact, strict=True)])

    assert recall(1, 0.0) < recall(64, 0.0) < recall(64, 3.0)
    assert recall(64, 3.0) > 0.99


def test_excluded_dead_and_forbidden_rows_stay_out_and_the_list_is_full():
    vectors, bias, queries = world(3_000, 16)
    index = index_of(vectors, bias, head=50)
    rng = np.random.default_rng(1)
    alive = rng.random(3_000) > 0.3
    allowed = [rng.random(3_000) > 0.5 if place % 2 else None for place in range(len(queries))]
    excluded = [rng.choice(3_000, size=20 * place, replace=False) for place in range(len(queries))]
    kernel = SearchKernel(vectors, bias, head_rows(bias, 50))
    kernel.scan(ScannedIndex(index), 16, 20.0)
    kernel.use(Extras(3_000, alive=alive))
    best = kernel.best(queries, 25, excluded, allowed=allowed)
    for place, query in enumerate(queries):
        scores = vectors @ query + bias
        scores[~alive], scores[excluded[place]] = -np.inf, -np.inf
        if allowed[place] is not None:
            scores[~allowed[place]] = -np.inf
        assert set(best.rows[place]) == set(np.argsort(-scores)[:25])


def test_a_boost_outside_the_trending_rows_is_allowed_for():
    vectors, bias, queries = world(3_000, 16)
    index = index_of(vectors, bias)
    counts = np.random.default_rng(2).exponential(20.0, size=3_000)
    boosts = 0.5 * np.log1p((counts * 0.7).astype(np.float32))
    kernel = SearchKernel(vectors, bias, NONE)
    kernel.scan(ScannedIndex(index), 16, 20.0)
    kernel.use(Extras(3_000, counts=counts, factor=0.7, weight=0.5, outside=float(boosts.max())))
    best = kernel.best(queries, 10, [NONE] * len(queries))
    exact = np.argsort(-(queries @ vectors.T + bias + boosts), axis=1)[:, :10]
    for own, truth in zip(best.rows, exact, strict=True):
        assert set(own) == set(truth)


def test_ties_go_to_the_smaller_row_whoever_finds_it():
    vectors, bias = np.ones((40, 8), dtype=np.float32), np.zeros(40, dtype=np.float32)
    kernel = SearchKernel(vectors, bias, np.array([30, 20, 5]))
    found = np.array([[9, 7, -1, 30, 3]])
    best = kernel.best(np.ones((1, 8), dtype=np.float32), 4, [np.array([7])], found=found)
    assert best.rows.tolist() == [[3, 5, 9, 20]]
    assert best.last_base[0] == 8.0


def test_fewer_rows_than_wanted_and_no_number_at_all():
    vectors, bias = np.ones((4, 8), dtype=np.float32), np.array([0.0, np.nan, -np.inf, 1.0], dtype=np.float32)
    kernel = SearchKernel(vectors, bias, np.arange(4))
    best = kernel.best(np.ones((1, 8), dtype=np.float32), 10, [NONE])
    assert best.rows[0, : best.sizes[0]].tolist() == [3, 0]


def test_stamps_start_again_before_they_run_out():
    vectors, bias, queries = world(100, 8)
    kernel = SearchKernel(vectors, bias, np.arange(100))
    first = kernel.best(queries, 10, [NONE] * len(queries))
    kernel._job.stamp = 2**32 - 1
    again = kernel.best(queries, 10, [NONE] * len(queries))
    assert kernel._job.stamp == len(queries)
    np.testing.assert_array_equal(first.rows, again.rows)


def test_an_index_of_other_vectors_is_refused():
    vectors, bias, _ = world(1_000, 8)
    index = index_of(vectors, bias)
    with pytest.raises(ValueError, match="row 999 of a snapshot of 500"):
        SearchKernel(vectors[:500], bias[:500], NONE).scan(ScannedIndex(index), 4, 2.0)
    flat = faiss.IndexFlatIP(10)
    with pytest.raises(ValueError, match="IndexFlatIP"):
        ScannedIndex(flat)
    wide = np.zeros((1_000, 12), dtype=np.float32)
    with pytest.raises(ValueError, match="too few for 12 dimensions"):
        SearchKernel(wide, bias, NONE).scan(ScannedIndex(index), 4, 2.0)


def test_rows_beyond_the_snapshot_can_be_added_with_their_own_vectors():
    vectors, bias, queries = world(50, 8)
    fresh, fresh_bias, _ = world(5, 8, seed=9)
    kernel = SearchKernel(vectors, bias, np.arange(50))
    kernel.use(Extras(55, fresh=Block(np.arange(50, 55), fresh, fresh_bias)))
    best = kernel.best(queries, 55, [NONE] * len(queries))
    scores = np.concatenate([queries @ vectors.T + bias, queries @ fresh.T + fresh_bias], axis=1)
    np.testing.assert_array_equal(best.rows, np.argsort(-scores, axis=1))


def test_rows_that_are_not_there_are_passed_over_and_short_arrays_refused():
    vectors, bias, queries = world(40, 8)
    kernel = SearchKernel(vectors, bias, np.arange(40))
    plain = kernel.best(queries, 10, [NONE] * len(queries))
    beyond = np.array([10**12, -5, 40], dtype=np.int64)
    suggested = (beyond, np.full(len(queries), 3), np.ones(3, dtype=np.float32))
    best = kernel.best(
        queries, 10, [beyond] * len(queries), found=np.tile(beyond, (len(queries), 1)), suggested=suggested
    )
    np.testing.assert_array_equal(plain.rows, best.rows)
    with pytest.raises(ValueError, match="30 values for 40 rows"):
        kernel.use(Extras(40, alive=np.ones(30, dtype=np.bool_)))
    with pytest.raises(ValueError, match="rows 40 to 40 are not all below 40"):
        kernel.use(Extras(40, trending=Block(np.array([40]), vectors[:1], bias[:1])))
    with pytest.raises(ValueError, match="shorter than the 40 rows"):
        kernel.best(queries[:1], 10, [NONE], allowed=[np.ones(39, dtype=np.bool_)])
