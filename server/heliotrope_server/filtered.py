"""Ranks among the rows that a filter admits.

Few rows are scored one and all. Where there are many, those of the largest bias are, and the index searches for
candidates among the others (see filtered_index). The delta goes likewise. Every score is exact, with every term.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.allowed_rows import AllowedRows, BaseRows
from heliotrope_server.filtered_index import FilteredIndex, FilterPlan
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.retriever import MAX_CANDIDATES, WIDENING, Ranking
from heliotrope_server.scoring import Query
from heliotrope_server.selection import best_places

_GATHERED_BYTES = 64 << 20
"""Vectors that are kept side by side: multiplying them takes a fifth of what reading each where it lies takes."""

LISTED_DELTA = 2_000
"""Admitted rows of the delta up to which all are scored, in some 80 us; a search takes as long."""
BestOfDelta = Callable[[Query, LiveView], tuple[NDArray[np.int64], NDArray[np.float32]]]


class FilteredRetriever:
    """Ranks queries with `allowed` rows through an IVF index of the snapshot."""

    def __init__(self, catalogue: LiveCatalogue, index: Any, best_of_delta: BestOfDelta | None = None) -> None:
        """`best_of_delta` finds the best of many admitted rows of the delta; None: all of them are scored."""
        import faiss

        search = catalogue.parameters.search
        if search is None:
            raise ValueError(f"snapshot {catalogue.version} holds no index")
        self._faiss: Any = faiss
        self._base_count, self._dimension = catalogue.base_count, catalogue.dimension
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._vectors, self._bias = catalogue.base_vectors, catalogue.base_bias
        self._index = FilteredIndex(index, search, self._bias)
        self._candidates = search.candidates
        self._best_of_delta = best_of_delta
        self._blocks: OrderedDict[tuple[BaseRows, int], NDArray[np.float32]] = OrderedDict()

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        """The rankings of queries that all have `allowed` rows."""
        groups: dict[int, list[int]] = {}
        for place, query in enumerate(queries):
            groups.setdefault(id(query.allowed), []).append(place)
        rankings: dict[int, Ranking] = {}
        for places in groups.values():
            group = [queries[place] for place in places]
            allowed = group[0].allowed
            assert allowed is not None
            if allowed.base.rows is None:
                found = [self._search(query, allowed, live) for query in group]
            else:
                found = self._among_all(group, allowed, allowed.base.rows, live)
            rankings.update(zip(places, found, strict=True))
        return [rankings[place] for place in range(len(queries))]

    def _among_all(
        self, queries: Sequence[Query], allowed: AllowedRows, base: NDArray[np.int64], live: LiveView
    ) -> list[Ranking]:
        """The best of all admitted rows, those of the snapshot being `base` (m,), for queries that share them."""
        tastes = self._kept_tastes(queries, allowed.base, base)
        return [self._best(query, [(base, own)], allowed, live) for query, own in zip(queries, tastes, strict=True)]

    def _search(self, query: Query, allowed: AllowedRows, live: LiveView) -> Ranking:
        """The best of what the index finds, of a wider search where that is too little, and of all rows at last."""
        plan = self._index.plan(allowed.base)
        breadth = max(self._candidates, 2 * query.wanted)
        if 4 * len(query.excluded) > breadth:
            breadth += len(query.excluded)
        widening = 1
        while True:
            found = self._index.found(query.vector, plan, min(breadth, MAX_CANDIDATES), widening)
            if found is None:
                return self._among_all([query], allowed, np.flatnonzero(allowed.base.mask), live)[0]
            rows = _once([found, *self._lively(query, allowed, live)])
            ranking = self._among(query, allowed, plan, rows, live)
            if len(ranking.rows) == query.wanted:
                lifted = self._lifted(query, ranking, found, allowed, live)
                return self._among(query, allowed, plan, _once([rows, lifted]), live) if len(lifted) else ranking
            breadth, widening = breadth * WIDENING, widening * WIDENING

    def _among(
        self, query: Query, allowed: AllowedRows, plan: FilterPlan, rows: NDArray[np.int64], live: LiveView
    ) -> Ranking:
        """The best of the head, of the delta, and of other rows of the snapshot (k,), ascending."""
        places = np.searchsorted(plan.head, rows).clip(max=len(plan.head) - 1)
        if len(plan.head):
            rows = rows[plan.head[places] != rows]
        (tastes,) = self._kept_tastes([query], allowed.base, plan.head)
        parts = [(plan.head, tastes), (rows, self._tastes(query.vector, rows))]
        return self._best(query, parts, allowed, live)

    def _lively(self, query: Query, allowed: AllowedRows, live: LiveView) -> list[NDArray[np.int64]]:
        """Admitted rows of the snapshot that live terms or the user's liked items may lift."""
        lively = [live.trending, live.moved]
        if query.suggestions is not None:
            lively.append(query.suggestions.rows)
        lively = [rows[rows < self._base_count] for rows in lively]
        return [rows[allowed.contains(rows)] for rows in lively if len(rows)]

    def _lifted(
        self, query: Query, ranking: Ranking, found: NDArray[np.int64], allowed: AllowedRows, live: LiveView
    ) -> NDArray[np.int64]:
        """Rows that were not found and whose boost could still bring them into the list.

        A row that was not found has at most what the last of the found has without boosts. The trending rows, which are
        candidates, may all be rows that the filter does not admit.
        """
        if not live.outside:
            return found[:0]
        last = float(self._tastes(query.vector, found).min(initial=np.inf))
        lacking = float(ranking.scores[-1] - self._intercept) - last
        if live.outside < lacking:
            return found[:0]
        admitted = np.flatnonzero(allowed.base.mask)
        return admitted[live.boosts[admitted] >= np.float32(lacking)]

    def _kept_tastes(
        self, queries: Sequence[Query], base: BaseRows, rows: NDArray[np.int64]
    ) -> Sequence[NDArray[np.float32]]:
        """The tastes of some admitted rows (m,), of as many always the same, for each query."""
        key = base, len(rows)
        vectors = self._blocks.get(key)
        if vectors is None:
            if 2 * len(rows) * self._vectors[:1].nbytes > _GATHERED_BYTES:
                return [self._tastes(query.vector, rows) for query in queries]
            vectors = self._blocks[key] = self._vectors[rows]
            size = sum(block.nbytes for block in self._blocks.values())
            while size > _GATHERED_BYTES:
                size -= self._blocks.popitem(last=False)[1].nbytes
        self._blocks.move_to_end(key)
        tastes: NDArray[np.float32] = np.stack([query.vector for query in queries]) @ vectors.T
        tastes += self._bias.take(rows)
        return list(tastes)

    def _tastes(self, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """q . x_i + b_i for rows of the snapshot (m,), residuals left out."""
        return self._products(vector, self._vectors, rows) + self._bias.take(rows)

    def _products(
        self, vector: NDArray[np.float32], matrix: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """q . x for some rows (m,) of a matrix (n, d), in a third of the time of gathering and multiplying them."""
        products = np.empty(len(rows), dtype=np.float32)
        if len(rows):
            pointer = self._faiss.swig_ptr
            self._faiss.fvec_inner_products_by_idx(
                pointer(products),
                pointer(np.ascontiguousarray(vector)),
                self._faiss.cast_integer_to_float_ptr(matrix.ctypes.data),
                pointer(rows),
                self._dimension,
                1,
                len(rows),
            )
        return products

    def _best(
        self,
        query: Query,
        parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
        allowed: AllowedRows,
        live: LiveView,
    ) -> Ranking:
        """The best of rows of the snapshot, in parts with their tastes that share no row, and of the delta."""
        delta, delta_scores = self._of_delta(query, allowed, live)
        scores = []
        for rows, tastes in parts:
            if len(live.moved):
                _lay(tastes, rows, live.moved, live.moved_vectors @ query.vector + self._bias[live.moved])
            scores.append(self._finished(query, rows, tastes, live))
        every = np.concatenate([*scores, delta_scores])
        rows = np.concatenate([*(rows for rows, _ in parts), delta])
        best = best_places(every, min(query.wanted, len(every)))
        best = best[every[best] > -np.inf]
        return Ranking(rows[best], every[best], True)

    def _of_delta(
        self, query: Query, allowed: AllowedRows, live: LiveView
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the delta with their scores: all that are admitted, or where these are many the best of them."""
        if self._best_of_delta is not None and np.count_nonzero(allowed.delta) > LISTED_DELTA:
            found, scores = self._best_of_delta(query, live)
            return found[found >= self._base_count], scores[found >= self._base_count]
        places = np.flatnonzero(allowed.delta)
        delta = places + self._base_count
        if not len(delta):
            return delta, np.empty(0, dtype=np.float32)
        tastes = self._products(query.vector, live.delta_vectors, places) + live.delta_bias[places]
        return delta, self._finished(query, delta, tastes, live)

    def _finished(
        self, query: Query, rows: NDArray[np.int64], scores: NDArray[np.float32], live: LiveView
    ) -> NDArray[np.float32]:
        """Adds to the tastes of rows (m,), ascending, what else a score holds; -inf for what must not be listed."""
        scores += live.boosts[rows]
        scores += self._intercept
        if query.suggestions is not None:
            _lay(scores, rows, query.suggestions.rows, query.suggestions.gains, add=True)
        if len(query.excluded):
            _lay(scores, rows, query.excluded, np.full(len(query.excluded), -np.inf, dtype=np.float32))
        if live.alive is not None:
            scores[~live.alive[rows]] = -np.inf
        return scores


def _once(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The rows of all parts, ascending, each once. (numpy.unique takes four times as long.)"""
    rows = np.concatenate(parts)
    rows.sort()
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = rows[1:] != rows[:-1]
    return rows[first]


def _lay(
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    named: NDArray[np.int64],
    values: NDArray[np.float32],
    *,
    add: bool = False,
) -> None:
    """Sets, or adds to, the scores of `rows` (m,), ascending, that are `named` (k,), each once."""
    places = np.searchsorted(rows, named)
    inside = places < len(rows)
    inside[inside] = rows[places[inside]] == named[inside]
    if add:
        scores[places[inside]] += values[inside]
    else:
        scores[places[inside]] = values[inside]
