"""Rows that are added beside an index, against FAISS's own lists and exact scoring by the definition."""

import ctypes

import faiss
import numpy as np
import pytest

from heliotrope_indexer.index_rows import head_rows
from heliotrope_indexer.search import Extras, ScannedIndex, SearchKernel, kernel_problem
from tests.indexer.search.test_kernel import index_of, world

pytestmark = pytest.mark.skipif(kernel_problem() is not None, reason="the kernel was not built")
NONE = np.empty(0, dtype=np.int64)
BASE, ALL = 2_000, 4_000


def halves(d, seed=0):
    """A kernel that scans an index of the first BASE rows, all vectors and biases, and queries."""
    vectors, bias, queries = world(ALL, d, seed=seed)
    kernel = SearchKernel(vectors[:BASE], bias[:BASE], NONE, intercept=-1.5)
    index = ScannedIndex(index_of(vectors[:BASE], bias[:BASE]))
    return kernel, index, vectors, bias, queries


def beyond(vectors, bias, size, **more):
    return Extras(size, beyond=(vectors[BASE:size], bias[BASE:size]), **more)


def add(kernel, vectors, bias, start, end):
    return kernel.add(np.arange(start, end), vectors[start:end], bias[start:end])


@pytest.mark.parametrize(("d", "per_code"), [(7, 2), (16, 1), (29, 2), (63, 2), (100, 1)])
def test_lists_and_codes_are_those_that_faiss_would_write(d, per_code):
    vectors, bias, _ = world(3_000, d, seed=d)
    index = index_of(vectors, bias, per_code=per_code)
    scanned = ScannedIndex(index)
    kernel = SearchKernel(vectors, bias, NONE)
    kernel.scan(scanned, 16, np.inf)
    order = np.argsort(-bias, kind="stable")  # as the build adds them
    kernel.add(3_000 + order, vectors[order], bias[order])
    added, lists = scanned.added, faiss.downcast_index(index).invlists
    assert len(added) == 3_000
    for number in range(index.nlist):
        size = lists.list_size(number)
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        np.testing.assert_array_equal(added._rows[number][:size], ids + 3_000)
        used = -(-size // 32) * ((index.pq.M + 1) // 2) * 32
        codes = np.ctypeslib.as_array((ctypes.c_uint8 * used).from_address(int(lists.get_codes(number))))
        np.testing.assert_array_equal(added._codes[number][:used], codes)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("d", [3, 16, 63])
def test_all_lists_with_a_wide_margin_give_the_exact_list_whatever_came_at_once(d, portable):
    kernel, index, vectors, bias, queries = halves(d, seed=d)
    kernel.scan(index, 16, 20.0, portable=portable)
    rng = np.random.default_rng(d)
    start = BASE
    while start < ALL:
        end = min(start + int(rng.integers(1, 300)), ALL)
        assert add(kernel, vectors, bias, start, end).all()
        start = end
    for size in (ALL, BASE + 700):
        # What `use` does not know of is passed over, though the lists hold it.
        kernel.use(beyond(vectors, bias, size))
        best = kernel.best(queries, 30, [NONE] * len(queries))
        exact = queries.astype(np.float64) @ vectors[:size].T.astype(np.float64) + bias[:size] - 1.5
        for place, scores in enumerate(exact):
            assert set(best.rows[place]) == set(np.argsort(-scores)[:30])
            np.testing.assert_allclose(best.scores[place], scores[best.rows[place]], rtol=1e-4, atol=1e-4)


def test_excluded_dead_forbidden_and_suggested_rows_beyond_the_snapshot():
    kernel, index, vectors, bias, queries = halves(16)
    kernel.scan(index, 16, 20.0)
    add(kernel, vectors, bias, BASE, ALL)
    rng = np.random.default_rng(1)
    alive, counts = rng.random(ALL) > 0.3, rng.exponential(20.0, size=ALL)
    boosts = 0.5 * np.log1p(counts.astype(np.float32))
    kernel.use(
        beyond(vectors, bias, ALL, alive=alive, counts=counts, factor=1.0, weight=0.5, outside=float(boosts.max()))
    )
    allowed = [rng.random(ALL) > 0.5 if place % 2 else None for place in range(len(queries))]
    excluded = [rng.choice(ALL, size=20 * place, replace=False) for place in range(len(queries))]
    rows = [np.sort(rng.choice(ALL, size=40, replace=False)) for _ in queries]
    gains = rng.exponential(2.0, size=40 * len(queries)).astype(np.float32)
    ends = np.arange(1, len(queries) + 1) * 40
    best = kernel.best(queries, 25, excluded, suggested=(np.concatenate(rows), ends, gains), allowed=allowed)
    for place, query in enumerate(queries):
        scores = vectors @ query + bias + boosts
        scores[rows[place]] += gains[40 * place : 40 * (place + 1)]
        scores[~alive], scores[excluded[place]] = -np.inf, -np.inf
        if allowed[place] is not None:
            scores[~allowed[place]] = -np.inf
        assert set(best.rows[place]) == set(np.argsort(-scores)[:25])


def test_a_row_whose_bias_the_codes_understate_is_left_to_the_caller():
    vectors, bias, _ = world(ALL, 16)
    bias[:100] += 9.0
    index = index_of(vectors, bias, head=100)
    kernel = SearchKernel(vectors, bias, head_rows(bias, 100))
    kernel.scan(ScannedIndex(index), 16, 3.0)
    again = np.arange(0, 1_000)
    taken = kernel.add(ALL + again, vectors[again], bias[again])
    assert not taken[:100].any()
    assert taken[100:].mean() > 0.98


def test_rows_unlike_those_of_the_snapshot_widen_the_margin_for_themselves():
    """Rows that the code words do not fit: their own error has to be allowed for."""
    vectors, bias, queries = world(BASE, 24)
    strange = (2.0 * np.random.default_rng(9).normal(size=(BASE, 24))).astype(np.float32)
    none = np.zeros(BASE, dtype=np.float32)
    scanned = ScannedIndex(index_of(vectors, bias, per_code=2))
    kernel = SearchKernel(vectors, bias, NONE)
    kernel.scan(scanned, 16, 4.0)
    kernel.add(np.arange(BASE, 2 * BASE), strange, none)
    kernel.use(Extras(2 * BASE, beyond=(strange, none)))
    exact = np.concatenate([queries @ vectors.T + bias, queries @ strange.T], axis=1)
    truth = np.argsort(-exact, axis=1)[:, :10]

    def found():
        best = kernel.best(queries, 10, [NONE] * len(queries))
        return np.mean([np.isin(own, other).mean() for own, other in zip(best.rows, truth, strict=True)])

    assert found() >= 0.97
    scanned.added.error[:] = scanned.error
    assert found() < 0.9


def test_what_cannot_be_added_is_named():
    kernel, index, vectors, bias, _ = halves(8)
    with pytest.raises(ValueError, match="no index is scanned"):
        add(kernel, vectors, bias, BASE, ALL)
    kernel.scan(index, 16, 2.0)
    with pytest.raises(ValueError, match="row 1999 is one of the snapshot, which has 2000"):
        add(kernel, vectors, bias, BASE - 1, ALL)
    with pytest.raises(ValueError, match="2000 vectors and 2000 biases for 1999 rows"):
        kernel.use(Extras(ALL - 1, beyond=(vectors[BASE:], bias[BASE:])))
    assert len(add(kernel, vectors, bias, BASE, BASE)) == 0
    assert index.added.nbytes == len(index.added) == 0
