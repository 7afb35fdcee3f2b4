"""Ranks among the rows that a filter admits.

Few rows are scored one and all. Where there are many, the index searches for candidates among them: it visits the lists
nearest to the query, passing over those without an admitted row, until

    admitted rows in the visited lists >= nprobe * n / lists * (sqrt(share) + SPREAD * rho),

with `share` the part of the rows that the filter admits, and rho the part of its variance that lies between the lists
(the intraclass correlation). A filter that has nothing to do with taste (rho near 0) leaves the best rows in the
nearest lists, only further out. One that cuts along the clusters (rho near 1) takes away whole neighbourhoods, and what
is best of the rest is scattered.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import head_rows
from heliotrope_server.allowed_rows import AllowedRows, BaseRows
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.retriever import MAX_CANDIDATES, WIDENING, LiveView, Query, Ranking
from heliotrope_server.selection import best_places

SPREAD = 15.0
"""Measured on 300,000 synthetic items, whole clusters of which were kept or not: recall@10 0.78 without, 0.99 with."""
_GATHERED_BYTES = 64 << 20
"""Vectors of listed rows that are kept side by side: the product with them takes a fifth of what reading each where it
lies takes."""


class _Search(NamedTuple):
    """How the index is searched for rows that a filter admits, on average `share` of the rows.

    `admitted` (lists,) counts them by list; `target` of them are visited; `breadth` are found. `head` are the admitted
    rows that the index leaves out. The selector reads the bits of the BaseRows that it was made for.
    """

    selector: Any
    admitted: NDArray[np.int64]
    target: float
    breadth: int
    head: NDArray[np.int64]


class FilteredRetriever:
    """Ranks queries with `allowed` rows, exactly scored with every term, through an IVF index of the snapshot."""

    def __init__(self, catalogue: LiveCatalogue, index: Any) -> None:
        import faiss

        search = catalogue.parameters.search
        if search is None:
            raise ValueError(f"snapshot {catalogue.version} holds no index")
        self._faiss: Any = faiss
        self._catalogue = catalogue
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._vectors, self._bias = catalogue.base_vectors, catalogue.base_bias
        self._vectors_pointer = faiss.cast_integer_to_float_ptr(self._vectors.ctypes.data)
        self._index = index
        self._settings = search
        self._head = head_rows(self._bias, search.head)
        self._lists: tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]] | None = None
        self._blocks: OrderedDict[BaseRows, NDArray[np.float32]] = OrderedDict()
        self._searches: WeakKeyDictionary[BaseRows, _Search] = WeakKeyDictionary()

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
                rows = self._with_delta(allowed, allowed.base.rows)
                tastes = np.stack([query.vector for query in group]) @ self._gathered(allowed.base).T
                tastes += self._bias.take(allowed.base.rows)
                found = [self._ranked(query, rows, own, live) for query, own in zip(group, tastes, strict=True)]
            rankings.update(zip(places, found, strict=True))
        return [rankings[place] for place in range(len(queries))]

    def _gathered(self, base: BaseRows) -> NDArray[np.float32]:
        """The vectors of listed rows (m, d)."""
        vectors = self._blocks.get(base)
        if vectors is not None:
            self._blocks.move_to_end(base)
            return vectors
        vectors = self._blocks[base] = self._vectors[base.rows]
        size = sum(block.nbytes for block in self._blocks.values())
        while size > _GATHERED_BYTES and len(self._blocks) > 1:
            size -= self._blocks.popitem(last=False)[1].nbytes
        return vectors

    def _among(self, query: Query, rows: NDArray[np.int64], live: LiveView) -> Ranking:
        """The best of some rows (m,), ascending, that the filter admits."""
        base = rows[: np.searchsorted(rows, self._catalogue.base_count)]
        return self._ranked(query, rows, self._tastes(query.vector, base), live)

    def _tastes(self, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """q . x_i + b_i for rows of the snapshot (k,), residuals left out."""
        scores = np.empty(len(rows), dtype=np.float32)
        if len(rows):
            pointer = self._faiss.swig_ptr
            # A third of what gathering the vectors and multiplying takes.
            self._faiss.fvec_inner_products_by_idx(
                pointer(scores),
                pointer(np.ascontiguousarray(vector)),
                self._vectors_pointer,
                pointer(rows),
                self._catalogue.dimension,
                1,
                len(rows),
            )
            scores += self._bias.take(rows)
        return scores

    def _ranked(self, query: Query, rows: NDArray[np.int64], tastes: NDArray[np.float32], live: LiveView) -> Ranking:
        """The best of rows (m,), ascending, whose snapshot part has these `tastes`."""
        scores = tastes.copy()
        base_count = self._catalogue.base_count
        if len(live.moved):
            _lay(scores, rows, live.moved, live.moved_vectors @ query.vector + self._bias[live.moved])
        if len(scores) < len(rows):
            delta = rows[len(scores) :] - base_count
            scores = np.concatenate([scores, live.delta_vectors[delta] @ query.vector + live.delta_bias[delta]])
        scores += live.boosts[rows]
        scores += self._intercept
        if query.suggestions is not None:
            _lay(scores, rows, query.suggestions.rows, query.suggestions.gains, add=True)
        if len(query.excluded):
            _lay(scores, rows, query.excluded, np.full(len(query.excluded), -np.inf, dtype=np.float32))
        if live.alive is not None:
            scores[~live.alive[rows]] = -np.inf
        best = best_places(scores, min(query.wanted, len(scores)))
        best = best[scores[best] > -np.inf]
        return Ranking(rows[best], scores[best], True)

    def _search(self, query: Query, allowed: AllowedRows, live: LiveView) -> Ranking:
        """The best of what the index finds, of a wider search where that is too little, and of all rows at last."""
        search = self._searches.get(allowed.base)
        if search is None:
            search = self._searches[allowed.base] = self._planned(allowed.base)
        breadth = max(search.breadth, 2 * query.wanted)
        if 4 * len(query.excluded) > breadth:
            breadth += len(query.excluded)
        widest = min(MAX_CANDIDATES, allowed.base.count)
        widening = 1
        while True:
            breadth = min(breadth, widest)
            found, whole = self._found(query.vector, search, breadth, widening * search.target)
            rows = self._candidates(found, search, query, allowed, live)
            ranking = self._among(query, rows, live)
            if whole and len(found) < breadth:
                return ranking  # nothing is left to be found
            if len(ranking.rows) == query.wanted:
                lifted = self._lifted(query, ranking, found, allowed, live) if live.outside else ()
                return self._among(query, np.union1d(rows, lifted), live) if len(lifted) else ranking
            if whole and breadth == widest:
                return self._among(query, self._with_delta(allowed, np.flatnonzero(allowed.base.mask)), live)
            breadth, widening = breadth * WIDENING, widening * WIDENING

    def _lifted(
        self, query: Query, ranking: Ranking, found: NDArray[np.int64], allowed: AllowedRows, live: LiveView
    ) -> NDArray[np.int64]:
        """Rows that were not found and whose boost could still bring them into the list.

        A row that was not found has at most what the last of the found has without boosts. The trending rows, which are
        candidates, may all be rows that the filter does not admit.
        """
        last = float(self._tastes(query.vector, found).min(initial=np.inf))
        lacking = float(ranking.scores[-1] - self._intercept) - last
        if live.outside < lacking:
            return found[:0]
        admitted = np.flatnonzero(allowed.base.mask)
        return admitted[live.boosts[admitted] >= np.float32(lacking)]

    def _found(
        self, vector: NDArray[np.float32], search: _Search, breadth: int, target: float
    ) -> tuple[NDArray[np.int64], bool]:
        """Admitted rows, ascending, and whether all lists that hold any were visited."""
        _, _, centroids = self._listed()
        asked = np.zeros((1, self._index.d), dtype=np.float32)
        asked[0, : len(vector)] = vector
        asked[0, len(vector)] = 1.0
        nearness = centroids @ asked[0]
        order = np.argsort(-nearness)
        order = order[search.admitted[order] > 0]
        visited = int(np.searchsorted(np.cumsum(search.admitted[order]), target)) + 1
        order = np.ascontiguousarray(order[:visited])
        scores, rows = np.empty((1, breadth), dtype=np.float32), np.empty((1, breadth), dtype=np.int64)
        pointer = self._faiss.swig_ptr
        self._index.search_preassigned_c(
            1,
            pointer(asked),
            breadth,
            pointer(order),
            pointer(np.ascontiguousarray(nearness[order])),
            pointer(scores),
            pointer(rows),
            False,
            self._faiss.SearchParametersIVF(sel=search.selector, nprobe=len(order)),
        )
        found = np.sort(rows[rows >= 0])
        return found, len(order) == np.count_nonzero(search.admitted)

    def _candidates(
        self, found: NDArray[np.int64], search: _Search, query: Query, allowed: AllowedRows, live: LiveView
    ) -> NDArray[np.int64]:
        """Rows to be scored, ascending: what was found, and all that the index does not know of or that live terms or
        the user's liked items may lift.
        """
        others = [live.trending, live.moved]
        if query.suggestions is not None:
            others.append(query.suggestions.rows)
        others = [rows[allowed.contains(rows)] for rows in others if len(rows)]
        delta = np.flatnonzero(allowed.delta) + self._catalogue.base_count
        rows = np.concatenate([found, search.head, delta, *others])
        rows.sort()
        if not others:
            return rows  # the index holds neither the head nor the delta
        # numpy.unique takes four times as long.
        once = np.ones(len(rows), dtype=np.bool_)
        once[1:] = rows[1:] != rows[:-1]
        return rows[once]

    def _with_delta(self, allowed: AllowedRows, base: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(allowed.delta):
            return base
        return np.concatenate([base, np.flatnonzero(allowed.delta) + self._catalogue.base_count])

    def _planned(self, base: BaseRows) -> _Search:
        lists, sizes, _ = self._listed()
        mask = base.mask
        admitted = np.bincount(lists[mask], minlength=len(sizes) + 1)[:-1]
        share = admitted.sum() / max(sizes.sum(), 1)
        between = (sizes * (admitted / np.maximum(sizes, 1) - share) ** 2).sum() / max(sizes.sum(), 1)
        spread = between / max(share * (1.0 - share), 1e-12)
        settings = self._settings
        return _Search(
            self._faiss.IDSelectorBitmap(base.bits),
            admitted,
            max(settings.nprobe, 1) * sizes.mean() * (np.sqrt(share) + SPREAD * spread),
            int(settings.candidates * (1.0 + spread)),
            self._head[mask[self._head]],
        )

    def _listed(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
        """The list of every row (n,), how many rows each has (lists,), and their centroids (lists, width). Rows that
        the index leaves out are in a list of their own behind the last.
        """
        if self._lists is None:
            index, count = self._index, self._index.nlist
            lists = np.full(self._catalogue.base_count, count, dtype=np.int32)
            sizes = np.zeros(count, dtype=np.int64)
            for number in range(count):
                sizes[number] = index.invlists.list_size(number)
                if sizes[number]:
                    ids = self._faiss.rev_swig_ptr(index.invlists.get_ids(number), int(sizes[number]))
                    lists[ids] = number
            self._lists = lists, sizes, index.quantizer.reconstruct_n(0, count)
        return self._lists


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
