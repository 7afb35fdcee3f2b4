"""What a search costs without a server around it: the snapshot's own index and vectors, asked by FAISS and NumPy alone.

The denominator of BatchRecommend: the same queries, the same index at the same settings, the best ten by exact score.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.recall import SnapshotArrays, hits

BATCH = 256
_BLOCK = 64
"""Queries whose candidates are scored together: more do not fit into the cache."""


@dataclass(frozen=True)
class BareSearch:
    """One run: queries per second of batches of 256 on one thread, and recall against exact scoring."""

    rate_per_s: float
    recall: float
    how: str


def bare_search(
    store: Path,
    version: str,
    queries: NDArray[np.float32],
    *,
    count: int,
    seconds: float,
    cpus: tuple[int, ...] | None,
) -> BareSearch:
    """Searches for queries (m, d) over and over for some seconds, on the given cores; run in a process of its own."""
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    arrays = SnapshotArrays.read(store, version)
    vectors, bias = np.array(arrays.vectors), arrays.bias
    search = arrays.parameters.get("search")
    if search is None:
        return _timed(_Exact(vectors, bias), arrays, queries, count, seconds)
    return _timed(_Indexed(store / version / "index.faiss", search, vectors, bias), arrays, queries, count, seconds)


class _Exact:
    how = "NumPy product"

    def __init__(self, vectors: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self._vectors, self._bias = vectors, bias

    def best(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """(m, count) rows, unordered."""
        scores = queries @ self._vectors.T + self._bias
        return np.argpartition(scores, -count, axis=1)[:, -count:]


class _Indexed:
    def __init__(
        self, path: Path, search: dict[str, Any], vectors: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> None:
        faiss.omp_set_num_threads(1)
        self._index = faiss.read_index(str(path))
        self._vectors, self._bias = vectors, bias
        self._candidates = search["candidates"]
        self._parameters = faiss.SearchParametersIVF(nprobe=search["nprobe"])  # type: ignore[call-arg]
        # The rows of the largest bias are in no index: all are scored.
        self._head = np.argsort(-bias, kind="stable")[: search["head"]]
        self._head_vectors, self._head_bias = vectors[self._head], bias[self._head]
        self.how = (
            f"FAISS, nprobe {search['nprobe']}, {self._candidates} candidates and {len(self._head)} scored exactly"
        )

    def best(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """(m, count) rows, unordered."""
        padded = np.zeros((len(queries), self._index.d), dtype=np.float32)
        padded[:, : queries.shape[1]] = queries
        padded[:, queries.shape[1]] = 1.0
        _, rows = self._index.search(padded, self._candidates, params=self._parameters)
        scores = np.empty(rows.shape, dtype=np.float32)
        for start in range(0, len(queries), _BLOCK):
            block = rows[start : start + _BLOCK]
            near = self._vectors[block]
            scores[start : start + _BLOCK] = np.matmul(near, queries[start : start + _BLOCK, :, None])[:, :, 0]
        scores += self._bias[rows]
        scores[rows < 0] = -np.inf
        if len(self._head):
            head_scores = queries @ self._head_vectors.T + self._head_bias
            scores = np.concatenate([head_scores, scores], axis=1)
            rows = np.concatenate([np.broadcast_to(self._head, head_scores.shape), rows], axis=1)
        top = np.argpartition(scores, -count, axis=1)[:, -count:]
        return np.take_along_axis(rows, top, axis=1)


def _timed(
    searcher: _Exact | _Indexed, arrays: SnapshotArrays, queries: NDArray[np.float32], count: int, seconds: float
) -> BareSearch:
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    found = [searcher.best(batch, count) for batch in batches]
    answered, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in batches:
            searcher.best(batch, count)
            answered += len(batch)
    rate = answered / (time.perf_counter() - started)
    right = 0
    for query, rows in zip(queries, np.concatenate(found), strict=True):
        exact = arrays.vectors.astype(np.float64) @ query.astype(np.float64) + arrays.bias
        right += hits(exact, rows.tolist(), count)
    return BareSearch(rate, right / (len(queries) * count), searcher.how)
