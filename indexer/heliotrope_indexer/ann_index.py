"""Builds the FAISS index and chooses how to search it by measured recall.

The index is IVF with 4-bit fast-scan product quantisation over `[x_i ; b_i ; 0 pad]`, inner product. Its
hits are only candidates: the server scores them again exactly on the mapped float32 vectors, so no float
copy is kept in the index and recall is measured *after* that second pass, by the search that the server uses: the
compiled kernel, or FAISS's own where there is no compiler. Small catalogues need no index: one matrix product is exact
and as fast.

Where biases decide much, most answers come from few rows, and a quantiser that has to serve both them and taste
serves neither: so the rows of the largest bias, the **head**, can stay out of the index and be scored one and all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.errors import IndexQualityError
from heliotrope_indexer.index_rows import DIMENSIONS_PER_CODE, head_rows, index_rows
from heliotrope_indexer.parameters import SearchParameters
from heliotrope_indexer.search import ScannedIndex, SearchKernel, kernel_problem

EXACT_UP_TO = 5_000
"""Items up to which the exact product is used. From 1,000 on the compiled search of an index takes less, but up to here
it saves 5 to 25 us a query, which a recall of 1 is worth; with 10,000 it saves 40 to 140 (decision 0025)."""
EXACT_INSTEAD_UP_TO = 20_000
"""Items up to which the exact product stands in where no index reaches the recalls: it takes 82 us a query there."""
RECALL_AT_100 = 0.95
SERVED_RECALL_AT_10 = 0.97
RECALL_AT_10 = 0.98
"""Above what has to be served: that is for other users than those that are measured with."""
_HEADS = (1_024, 4_096)
_HEAD_PAYS_FROM = 0.3
"""Share of the 10 best rows of the queries that has to lie in a head for an index beside it to be tried."""
_NPROBES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_CANDIDATES = (64, 100, 200, 400, 800, 1_600, 3_200)
_MARGINS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0)
_BATCH = 50


@dataclass(frozen=True)
class MeasuredIndex:
    """An index with the cheapest search settings that keep both recalls, and what was measured."""

    index: faiss.Index
    search: SearchParameters
    factory: str
    recall_at_10: float
    recall_at_100: float
    query_ms: float
    """CPU time of a query for 10 rows with the re-scoring, in a batch (with FAISS's own search a single one for 100,
    median), one thread, on the machine that built the index."""
    exact_query_ms: float
    """Time of one exact product over the whole catalogue, a query of a batch."""

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {
            "index": self.factory,
            "recall_at_10": round(self.recall_at_10, 4),
            "recall_at_100": round(self.recall_at_100, 4),
            "query_ms": round(self.query_ms, 3),
            "exact_query_ms": round(self.exact_query_ms, 3),
        }


def build_index(
    vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> MeasuredIndex:
    """Builds and measures an index over vectors (n, d) and bias (n,), with served queries (m, d) without
    the 1.

    `progress` is told of 9 steps. Raises IndexQualityError when no setting reaches the recalls.
    """
    rows = index_rows(vectors, bias)
    asked = index_rows(queries, np.ones(len(queries), dtype=np.float32))
    n, width = rows.shape
    lists = int(2 ** np.clip(round(np.log2(np.sqrt(n))), 4, 13))
    tell = progress or (lambda _: None)
    faiss.omp_set_num_threads(threads)
    exact_ids, exact_ms = exact_top(rows, asked, 100)
    tell(1)
    heads = [head for head in _HEADS if _pays(bias, head, exact_ids)]
    # The codes of half the width lose nothing that a head has not caught.
    plans = [(0, per_code) for per_code in DIMENSIONS_PER_CODE] + [(head, DIMENSIONS_PER_CODE[0]) for head in heads]
    best: MeasuredIndex | None = None
    for place, (head, per_code) in enumerate(plans):
        index = train_index(rows, bias, lists, width // per_code, head_rows(bias, head))
        if kernel_problem() is None:
            settings = _cheapest_scan(index, vectors, bias, head_rows(bias, head), queries, exact_ids)
        else:
            settings = _cheapest(index, rows, head_rows(bias, head), asked, exact_ids)
        tell(8 * (place + 1) // len(plans) - 8 * place // len(plans))
        if settings and (best is None or settings[1] < best.query_ms):
            search, query_ms, recall_at_10, recall_at_100 = settings
            factory = f"IVF{lists},PQ{width // per_code}x4fs"
            best = MeasuredIndex(index, search, factory, recall_at_10, recall_at_100, query_ms, exact_ms)
    if best is None:
        raise IndexQualityError(
            f"no index of {lists} lists up to nprobe {_NPROBES[-1]} and {_CANDIDATES[-1]} candidates reaches "
            f"recall@10 {RECALL_AT_10} and recall@100 {RECALL_AT_100}; use an exact retriever (--exact-index)"
        )
    return best


def served_queries(
    vectors: NDArray[np.float32],
    scoring_matrices: NDArray[np.float32],
    prior: NDArray[np.float32],
    kappas: tuple[float, ...],
    *,
    count: int = 200,
    seed: int = 0,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Queries (count, d) like those served: `sum_h v_h A_h` of users with 1 to 20 events on related items.

    Every second user has a taste: half of the items are neighbours of one of them. The others touch items of all kinds;
    their flat means are the hardest queries, and without them served recall@10 fell to 0.95 where 0.99 was measured.
    `weights` (n,) draws items by their popularity.
    """
    rng = np.random.default_rng(seed)
    n = len(vectors)
    chance = None if weights is None or not weights.any() else (weights + 0.1) / (weights + 0.1).sum()
    queries = np.zeros((count, vectors.shape[1]), dtype=np.float32)
    for user in range(count):
        length = int(rng.integers(1, 21))
        rows = rng.choice(n, size=length, p=chance)
        near = vectors[rng.choice(n, size=min(n, 2_000), replace=False)]
        company = max(length // 2, 1) if user % 2 else 0
        closest = near[np.argsort(-(near @ vectors[rows[0]]))[:company]]
        sums = vectors[rows].sum(axis=0) + closest.sum(axis=0)
        mass = length + len(closest)
        for kappa, matrix in zip(kappas, scoring_matrices, strict=True):
            queries[user] += ((kappa * prior + sums) / (kappa + mass)) @ matrix
    return queries


def exact_top(rows: NDArray[np.float32], asked: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], float]:
    """The k best rows of each query, (m, k), by block-wise exact products; and milliseconds per query."""
    k = min(k, len(rows))
    best = np.empty((len(asked), k), dtype=np.int64)
    started = time.perf_counter()
    for start in range(0, len(asked), 64):
        scores = asked[start : start + 64] @ rows.T
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        best[start : start + 64] = np.take_along_axis(top, order, axis=1)
    return best, (time.perf_counter() - started) * 1_000 / len(asked)


def search_top(
    index: faiss.Index,
    rows: NDArray[np.float32],
    head: tuple[NDArray[np.int64], NDArray[np.float32]],
    query: NDArray[np.float32],
    k: int,
    search: SearchParameters,
) -> NDArray[np.int64]:
    """The k best rows of one query (width,) as the server finds them: the head, given as its row numbers (h,) and the
    rows (h, width), and candidates of the index, scored exactly.
    """
    parameters: Any = faiss.SearchParametersIVF()
    parameters.nprobe = search.nprobe
    _, found = index.search(query[None], search.candidates, params=parameters)
    candidates = found[0][found[0] >= 0]
    scores = np.concatenate([rows[candidates] @ query, head[1] @ query])
    best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    best = best[np.argsort(-scores[best], kind="stable")]
    top: NDArray[np.int64] = np.concatenate([candidates, head[0]])[best]
    return top


def recall(
    index: faiss.Index,
    vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    queries: NDArray[np.float32],
    search: SearchParameters,
) -> tuple[float, float]:
    """recall@10 and recall@100 of served queries (m, d) without the 1, by the search that the server uses."""
    rows, asked = index_rows(vectors, bias), index_rows(queries, np.ones(len(queries), dtype=np.float32))
    exact, _ = exact_top(rows, asked, 100)
    head = head_rows(bias, search.head)
    if kernel_problem() is None:
        kernel = SearchKernel(vectors, bias, head)
        kernel.scan(ScannedIndex(index), search.nprobe, search.margin)
        return _scanned(kernel, queries, exact[:, :10])[0], _scanned(kernel, queries, exact)[0]
    tops = [search_top(index, rows, (head, rows[head]), query, 100, search) for query in asked]
    return _recall([top[:10] for top in tops], exact[:, :10]), _recall(tops, exact)


def train_index(
    rows: NDArray[np.float32], bias: NDArray[np.float32], lists: int, codes: int, head: NDArray[np.int64]
) -> faiss.Index:
    """IVF with residual codes behind a spherical inner-product quantiser, over all rows but the head; `bias` (n,) is
    the order of the rows in a list, largest first.

    Measured on 100k rows of 127 + 1 dimensions with uneven norms, nprobe 128 and 800 candidates, recall@10
    / @100: L2 quantiser 0.85 / 0.82 (codes of the rows) and 0.12 / 0.07 (residual codes); spherical 0.92 /
    0.85 and
    **0.98 / 0.94**. Long rows attract everything under L2, and residuals repair what the bias column and
    the norms spoil. Twice the lists lost recall at every time.
    """
    width = rows.shape[1]
    quantizer: Any = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQFastScan(quantizer, width, lists, codes, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    index.cp.spherical = True
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.cp.seed = 1234
    # The index owns the quantiser in C++ and lets go of it there.
    index.own_fields = True
    quantizer.this.disown()
    inside = np.ones(len(rows), dtype=np.bool_)
    inside[head] = False
    ids = np.flatnonzero(inside)
    index.train(rows[ids])
    # Largest bias first: each list is scanned up to where a row would need more taste than there is.
    ids = ids[np.argsort(-bias[ids], kind="stable")]
    index.add_with_ids(rows[ids], ids)
    return index


def _pays(bias: NDArray[np.float32], head: int, exact: NDArray[np.int64]) -> bool:
    """Whether a head of that size is small beside the catalogue and yet holds a good part of the answers."""
    covered = float(np.isin(exact[:, :10], head_rows(bias, head)).mean())
    return 4 * head <= len(bias) and covered >= _HEAD_PAYS_FROM


def _cheapest(
    index: Any,
    rows: NDArray[np.float32],
    head: NDArray[np.int64],
    asked: NDArray[np.float32],
    exact: NDArray[np.int64],
) -> tuple[SearchParameters, float, float, float] | None:
    """The fastest settings that keep both recalls: (settings, ms per query, recall@10, recall@100)."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    best: tuple[SearchParameters, float, float, float] | None = None
    both = head, rows[head]
    try:
        for nprobe in (value for value in _NPROBES if value <= index.nlist):
            for candidates in (value for value in _CANDIDATES if value <= len(rows)):
                search = SearchParameters(nprobe=nprobe, candidates=candidates, head=len(head))
                took: list[float] = []
                hits = np.zeros(2)
                for query, truth in zip(asked, exact, strict=True):
                    # CPU time: a busy machine must not choose the settings.
                    started = time.process_time()
                    top = search_top(index, rows, both, query, 100, search)
                    took.append(time.process_time() - started)
                    hits += np.isin(top[:10], truth[:10]).sum() / 10, np.isin(top, truth).sum() / len(truth)
                recall_at_10, recall_at_100 = hits / len(asked)
                query_ms = float(np.median(took)) * 1_000
                good = recall_at_10 >= RECALL_AT_10 and recall_at_100 >= RECALL_AT_100
                if good and (best is None or query_ms < best[1]):
                    best = (search, query_ms, float(recall_at_10), float(recall_at_100))
                if good or (best and query_ms > 2 * best[1]):
                    break
    finally:
        faiss.omp_set_num_threads(threads)
    return best


def _cheapest_scan(
    index: Any,
    vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    head: NDArray[np.int64],
    queries: NDArray[np.float32],
    exact: NDArray[np.int64],
) -> tuple[SearchParameters, float, float, float] | None:
    """The fastest settings of the compiled search that keep both recalls, as `_cheapest`.

    Its number of candidates is for servers without a compiler: what FAISS's own search needs at the same nprobe.
    """
    kernel, scanned = SearchKernel(vectors, bias, head), ScannedIndex(index)
    best: tuple[SearchParameters, float, float, float] | None = None
    for nprobe in (value for value in _NPROBES if value <= index.nlist):
        for margin in _MARGINS:
            kernel.scan(scanned, nprobe, margin)
            recall_at_10, query_ms = _scanned(kernel, queries, exact[:, :10])
            recall_at_100, _ = _scanned(kernel, queries, exact)
            good = recall_at_10 >= RECALL_AT_10 and recall_at_100 >= RECALL_AT_100
            if good and (best is None or query_ms < best[1]):
                search = SearchParameters(nprobe=nprobe, candidates=_CANDIDATES[-1], head=len(head), margin=margin)
                best = (search, query_ms, recall_at_10, recall_at_100)
            if good or (best and query_ms > 2 * best[1]):
                break
    if best is None:
        return None
    both = head, index_rows(vectors[head], bias[head], index.d)
    rows = index_rows(vectors, bias, index.d)
    asked = index_rows(queries, np.ones(len(queries), dtype=np.float32), index.d)
    for candidates in (value for value in _CANDIDATES if value <= len(vectors)):
        search = best[0].model_copy(update={"candidates": candidates})
        tops = [search_top(index, rows, both, query, exact.shape[1], search) for query in asked]
        if _recall([top[:10] for top in tops], exact[:, :10]) >= RECALL_AT_10 and _recall(tops, exact) >= RECALL_AT_100:
            return search, *best[1:]
    return best


def _scanned(kernel: SearchKernel, queries: NDArray[np.float32], exact: NDArray[np.int64]) -> tuple[float, float]:
    """Recall of the k best rows, given as (m, k), and CPU milliseconds a query in a batch: the better of two passes."""
    k = exact.shape[1]
    passes = []
    for _ in range(2):
        found: list[NDArray[np.int64]] = []
        # CPU time: a busy machine must not choose the settings.
        started = time.process_time()
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            best = kernel.best(batch, k, [_NO_ROWS] * len(batch))
            found += [row[:size] for row, size in zip(best.rows, best.sizes, strict=True)]
        passes.append(time.process_time() - started)
    return _recall(found, exact), min(passes) * 1_000 / len(queries)


def _recall(found: Sequence[NDArray[np.int64]], exact: NDArray[np.int64]) -> float:
    hits = [int(np.isin(own, truth).sum()) for own, truth in zip(found, exact, strict=True)]
    return sum(hits) / exact.size


_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
