"""Candidate search and the exact scoring pass.

    score(u, i) = q . x_i + b_i + gamma * log1p(count_i(t)) + suggestion_ui + intercept,    q = sum_h v_h A_h

Two retrievers, one contract: `ExactRetriever` scores everything with one matrix product; `FaissRetriever` searches
an index over [x_i ; b_i] for candidates and re-scores those exactly, in float32, with every term. The head (the rows of
the largest bias, which the index leaves out), the delta and the trending rows are always among the candidates, and so
is every suggested row (see neighbours) that could be in the list.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import head_rows, index_rows
from heliotrope_server.allowed_rows import AllowedRows
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.selection import best_of_each, best_places

TRENDING = 512
MAX_CANDIDATES = 4096
WIDENING = 4
"""How many times as many candidates a question gets whose first answer is not certified."""


class Query(NamedTuple):
    """One user's question to the retriever: the query vector q (d,), how many rows, the rows to leave out, what the
    user's liked items say of their neighbours, and the rows to choose among (None: all).
    """

    vector: NDArray[np.float32]
    wanted: int
    excluded: NDArray[np.int64]
    suggestions: Suggestions | None = None
    allowed: AllowedRows | None = None


class Ranking(NamedTuple):
    """Rows, best first, with their exact scores, intercept included. `certified`: no live term was missed."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    certified: bool


class Boosts(Protocol):
    """Stands in for an array (n,) of boosts where only some rows of it are needed."""

    def __getitem__(self, rows: NDArray[np.int64] | int | slice) -> NDArray[np.float32]: ...


class LiveView(NamedTuple):
    """All that changes between two searches, taken on the event loop at one moment.

    `boosts` (n,) is gamma * log1p(count) by row, or what computes it for the rows that it is indexed by; `trending` are
    the rows with the largest, at most TRENDING of them, with their vectors and what their score holds beyond taste
    (bias and boost); no other row has a boost above `outside`. `moved` are the snapshot's rows that are served with an
    online residual, never among the trending, with their vectors and terms in the same way. `alive` is None when no row
    is dead.
    """

    boosts: "NDArray[np.float32] | Boosts"
    trending: NDArray[np.int64]
    trending_vectors: NDArray[np.float32]
    trending_terms: NDArray[np.float32]
    outside: float
    moved: NDArray[np.int64]
    moved_vectors: NDArray[np.float32]
    moved_terms: NDArray[np.float32]
    delta_vectors: NDArray[np.float32]
    delta_bias: NDArray[np.float32]
    alive: NDArray[np.bool_] | None


class CandidateIndex(Protocol):
    """An index over [x ; b], padded to `d` columns, with FAISS's own search by inner product.

    It returns scores and rows (m, k) for queries (m, d); row -1 where there are no more.
    """

    d: int

    def search(
        self, x: NDArray[np.float32], k: int, *, params: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


class Retriever(Protocol):
    """Ranks rows of one LiveCatalogue for a batch of queries."""

    description: str

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]: ...


def live_view(catalogue: LiveCatalogue, counts: NDArray[np.float64], weight: float | None = None) -> LiveView:
    """The view for decayed counts (n,) of the catalogue's rows; `weight` is gamma, None that of the snapshot."""
    if weight is None:
        weight = catalogue.parameters.live_popularity_weight
    boosts = np.zeros(len(counts), dtype=np.float32)
    trending: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    outside = 0.0
    moved, moved_vectors = catalogue.moved_rows()
    busy = np.flatnonzero(counts)
    if weight > 0.0 and len(busy):
        boosts[busy] = weight * np.log1p(counts[busy])
        trending = busy[busy < catalogue.base_count]
        if len(moved):
            trending = np.setdiff1d(trending, moved, assume_unique=True)
        if len(trending) > TRENDING:
            order = np.argpartition(-boosts[trending], TRENDING)
            outside = float(boosts[trending[order[TRENDING]]])
            trending = trending[order[:TRENDING]]
    alive = catalogue.alive[: catalogue.size] if catalogue.alive_count < catalogue.size else None
    return LiveView(
        boosts,
        trending,
        catalogue.base_vectors[trending],
        catalogue.base_bias[trending] + boosts[trending],
        outside,
        moved,
        moved_vectors,
        catalogue.base_bias[moved] + boosts[moved],
        catalogue.delta_vectors,
        catalogue.delta_bias,
        alive,
    )


def item_vectors(catalogue: LiveCatalogue, live: LiveView, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """x_i of some rows (m,), as they are scored: (m, d)."""
    main = rows < catalogue.base_count
    vectors = np.empty((len(rows), catalogue.dimension), dtype=np.float32)
    vectors[main] = catalogue.base_vectors[rows[main]]
    vectors[~main] = live.delta_vectors[rows[~main] - catalogue.base_count]
    if len(live.moved):
        order = np.argsort(live.moved)
        places = order[np.searchsorted(live.moved, rows, sorter=order).clip(max=len(order) - 1)]
        moved = live.moved[places] == rows
        vectors[moved] = live.moved_vectors[places[moved]]
    return vectors


def exact_scores(
    catalogue: LiveCatalogue, live: LiveView, query: Query, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The score that a ranking would give some rows (m,), (m,); -inf where it would leave them out."""
    main = rows < catalogue.base_count
    bias = np.empty(len(rows), dtype=np.float32)
    bias[main] = catalogue.base_bias[rows[main]]
    bias[~main] = live.delta_bias[rows[~main] - catalogue.base_count]
    scores: NDArray[np.float32] = item_vectors(catalogue, live, rows) @ query.vector
    scores += bias + live.boosts[rows] + np.float32(catalogue.parameters.intercept)
    if query.suggestions is not None:
        scores += query.suggestions.of_rows(rows)
    scores[np.isin(rows, query.excluded)] = -np.inf
    if live.alive is not None:
        scores[~live.alive[rows]] = -np.inf
    if query.allowed is not None:
        scores[~query.allowed.contains(rows)] = -np.inf
    return scores


def make_retriever(catalogue: LiveCatalogue) -> "Retriever":
    """The retriever that the snapshot was built for."""
    if catalogue.parameters.search is None:
        return ExactRetriever(catalogue)
    return FaissRetriever(catalogue)


class ExactRetriever:
    """Scores the whole catalogue by one matrix product (NumPy's BLAS). The right choice up to some 20,000 items."""

    description = "exact"

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._base_count = catalogue.base_count
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._vectors = catalogue.snapshot.vectors.view(np.ndarray)
        self._bias = catalogue.snapshot.bias.view(np.ndarray)

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        base_count = self._base_count
        matrix = np.stack([query.vector for query in queries])
        size = base_count + len(live.delta_bias)
        scores = np.empty((len(queries), size), dtype=np.float32)
        np.matmul(matrix, self._vectors.T, out=scores[:, :base_count])
        scores[:, :base_count] += self._bias
        if len(live.moved):
            scores[:, live.moved] = matrix @ live.moved_vectors.T + self._bias[live.moved]
        if size > base_count:
            scores[:, base_count:] = matrix @ live.delta_vectors.T + live.delta_bias
        scores += live.boosts[:]
        scores += self._intercept
        if live.alive is not None:
            scores[:, ~live.alive] = -np.inf
        for row_scores, query in zip(scores, queries, strict=True):
            if query.suggestions is not None:
                row_scores[query.suggestions.rows] += query.suggestions.gains
            row_scores[query.excluded] = -np.inf
            if query.allowed is not None:
                row_scores[~query.allowed.mask] = -np.inf
        return [_best(row_scores, None, query.wanted) for row_scores, query in zip(scores, queries, strict=True)]


class FaissRetriever:
    """Approximate candidates from the snapshot's FAISS index, exact scores from its mapped float32 vectors.

    A single query takes some 50 us, so what a NumPy call costs counts: what most requests lack (a delta, trending or
    dead rows, exclusions) is not computed for them.
    """

    def __init__(self, catalogue: LiveCatalogue, index: CandidateIndex | None = None) -> None:
        """`index`, over all rows, stands in place of the snapshot's own."""
        # faiss takes 0.2 s to import and is not needed by small catalogues.
        import faiss

        search = catalogue.parameters.search
        own = catalogue.snapshot.index()
        if search is None or own is None:
            raise ValueError(f"snapshot {catalogue.version} holds no index")
        self._faiss: Any = faiss
        self._dimension = catalogue.dimension
        self._base_count = catalogue.base_count
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._index: CandidateIndex = own if index is None else index
        # An index that was brought holds the head too, and is always searched.
        head = search.head if index is None else 0
        self._nprobe = search.nprobe if index is None else 1
        self._candidates = search.candidates
        self._parameters = faiss.SearchParametersIVF(nprobe=max(search.nprobe, 1))  # type: ignore[call-arg]
        self._vectors = catalogue.snapshot.vectors.view(np.ndarray)
        self._bias = catalogue.snapshot.bias.view(np.ndarray)
        self._vectors_pointer = faiss.cast_integer_to_float_ptr(self._vectors.ctypes.data)
        if not self._nprobe:
            self._longest = float(np.linalg.norm(self._vectors, axis=1).max())
        self._head = head_rows(self._bias, head)
        self._head_vectors = index_rows(self._vectors[self._head], self._bias[self._head], self._index.d)
        self._marks = np.zeros(catalogue.base_count, dtype=np.bool_)
        self._gains = np.zeros(catalogue.base_count, dtype=np.float32)
        self._met = np.zeros(catalogue.base_count, dtype=np.bool_)
        # Imported here since it ranks by what stands in this module. An index that was brought knows no filters.
        from heliotrope_server.filtered import FilteredRetriever

        self._filtered = FilteredRetriever(catalogue, own)
        # For the rare user who has seen all that the index finds.
        self._exhaustive = ExactRetriever(catalogue)
        factory = catalogue.snapshot.manifest.quality.get("index", type(own).__name__)
        self.description = f"faiss {factory} nprobe {search.nprobe} candidates {search.candidates} head {search.head}"

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        if any(query.allowed is not None for query in queries):
            return self._rank_apart(queries, live)
        # A user who has seen many items needs more candidates; grouped by power of two so that one such user does not
        # make the whole batch pay.
        groups: dict[int, list[int]] = {}
        for place, query in enumerate(queries):
            groups.setdefault(self._breadth(query), []).append(place)
        rankings: dict[int, Ranking] = {}
        for breadth, places in groups.items():
            found = self._rank_group([queries[place] for place in places], live, breadth)
            rankings.update(zip(places, found, strict=True))
            doubtful = [place for place in places if not rankings[place].certified]
            wider = min(WIDENING * breadth, MAX_CANDIDATES, self._base_count)
            if doubtful and wider > breadth:
                found = self._rank_group([queries[place] for place in doubtful], live, wider)
                rankings.update(zip(doubtful, found, strict=True))
        return [rankings[place] for place in range(len(queries))]

    def _rank_apart(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        """Queries that choose among some rows only go another way."""
        free = [query for query in queries if query.allowed is None]
        bound = [query for query in queries if query.allowed is not None]
        ranked, filtered = iter(self.rank(free, live)), iter(self._filtered.rank(bound, live))
        return [next(ranked if query.allowed is None else filtered) for query in queries]

    def _breadth(self, query: Query) -> int:
        wanted = max(self._candidates, 2 * query.wanted)
        if 4 * len(query.excluded) > wanted:
            wanted += len(query.excluded)
        breadth = self._candidates
        while breadth < wanted:
            breadth *= 2
        return min(breadth, MAX_CANDIDATES, self._base_count)

    def _rank_group(self, queries: list[Query], live: LiveView, breadth: int) -> list[Ranking]:
        base_count = self._base_count
        asked = np.zeros((len(queries), self._index.d), dtype=np.float32)
        for place, query in enumerate(queries):
            asked[place, : self._dimension] = query.vector
        matrix = asked[:, : self._dimension].copy()
        asked[:, self._dimension] = 1.0
        scores, rows, last_base = self._candidates_of(asked, matrix, breadth)
        if len(live.trending):
            scores += live.boosts[rows]
        for live_rows, vectors, terms in (
            (live.trending, live.trending_vectors, live.trending_terms),
            (live.moved, live.moved_vectors, live.moved_terms),
        ):
            if not len(live_rows):
                continue
            # A live row that was also found would stand twice: the found copy is struck.
            self._marks[live_rows] = True
            scores[self._marks[rows]] = -np.inf
            self._marks[live_rows] = False
            extra = matrix @ vectors.T + terms
            scores = np.concatenate([scores, extra], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(live_rows, extra.shape)], axis=1)
        if len(live.delta_bias):
            delta_rows = np.arange(base_count, base_count + len(live.delta_bias))
            extra = matrix @ live.delta_vectors.T + live.delta_bias + live.boosts[delta_rows]
            scores = np.concatenate([scores, extra], axis=1)
            rows = np.concatenate([rows, np.broadcast_to(delta_rows, extra.shape)], axis=1)
        if live.alive is not None:
            scores[~live.alive[rows]] = -np.inf
        scores += self._intercept
        unmet: list[NDArray[np.bool_] | None] = []
        for query, row_scores, row in zip(queries, scores, rows, strict=True):
            suggested = query.suggestions
            unmet.append(None if suggested is None else self._suggest(suggested, live, row_scores, row))
            self._exclude(query.excluded, row_scores, row)
        return self._finish(queries, unmet, live, scores, rows, last_base)

    def _candidates_of(
        self, asked: NDArray[np.float32], matrix: NDArray[np.float32], breadth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Scores of taste and bias and rows, (m, h + breadth), of the head and of what the index finds for m queries,
        `asked` as it wants them and `matrix` (m, d); and the most that any other row has, (m,).
        """
        head_scores = asked @ self._head_vectors.T
        head = self._head[None] if len(asked) == 1 else np.broadcast_to(self._head, head_scores.shape)
        if not self._nprobe:
            reach = np.linalg.norm(matrix, axis=1) * self._longest + self._head_vectors[-1, self._dimension]
            return head_scores, head, reach
        _, rows = self._index.search(asked, breadth, params=self._parameters)
        missing = rows < 0
        lacking = bool(missing.any())
        if lacking:
            rows[missing] = 0
        scores = np.empty(rows.shape, dtype=np.float32)
        pointer = self._faiss.swig_ptr
        # Two to four times as fast as gathering the vectors and multiplying.
        self._faiss.fvec_inner_products_by_idx(
            pointer(scores), pointer(matrix), self._vectors_pointer, pointer(rows), self._dimension, *rows.shape
        )
        scores += self._bias.take(rows)
        if lacking:
            last_base = np.where(missing, np.inf, scores).min(axis=1)
            scores[missing] = -np.inf
        else:
            last_base = scores.min(axis=1)
        if not len(self._head):
            return scores, rows, last_base
        return np.concatenate([head_scores, scores], axis=1), np.concatenate([head, rows], axis=1), last_base

    def _finish(
        self,
        queries: list[Query],
        unmet: list[NDArray[np.bool_] | None],
        live: LiveView,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        last_base: NDArray[np.float32],
    ) -> list[Ranking]:
        """The rankings of m queries from the scores and rows (m, c) of their candidates."""
        wanted = max(query.wanted for query in queries)
        best_scores, best_rows = best_of_each(self._faiss, scores, rows, min(wanted, scores.shape[1]))
        rankings = []
        for place, query in enumerate(queries):
            missed = unmet[place]
            if query.suggestions is not None and missed is not None:
                extra, more = self._unmet(
                    query, query.suggestions, missed, live, scores[place], float(last_base[place])
                )
                ranking = _best(
                    np.concatenate([best_scores[place], extra]), np.concatenate([best_rows[place], more]), query.wanted
                )
            else:
                own = best_scores[place, : query.wanted]
                size = len(own) if len(own) and own[-1] > -np.inf else int((own > -np.inf).sum())
                ranking = Ranking(best_rows[place, :size], own[:size], True)
            if len(ranking.rows) < query.wanted:
                rankings.append(self._exhaustive.rank([query], live)[0])
                continue
            # A row that was not found has at most last_base + outside. (The search is approximate in its base scores;
            # what that costs is the index's measured recall.)
            if live.outside != 0.0:
                cut_off = float(ranking.scores[-1] - self._intercept)
                ranking = ranking._replace(certified=float(last_base[place]) + live.outside <= cut_off)
            rankings.append(ranking)
        return rankings

    def _suggest(
        self, suggested: Suggestions, live: LiveView, scores: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Adds what is suggested to the scores of the candidates; returns which suggested rows (c,) are none.

        A row that scores -inf is no candidate: the live copy of a struck one stands elsewhere.
        """
        size = self._base_count + len(live.delta_bias)
        if size > len(self._gains):
            self._gains, self._met = np.zeros(2 * size, dtype=np.float32), np.zeros(2 * size, dtype=np.bool_)
        # Scattering and gathering costs a third of a search in the sorted rows.
        self._gains[suggested.rows] = suggested.gains
        scores += self._gains[rows]
        self._gains[suggested.rows] = 0.0
        self._met[rows[scores > -np.inf]] = True
        unmet = ~self._met[suggested.rows]
        self._met[rows] = False
        return unmet

    def _unmet(
        self,
        query: Query,
        suggested: Suggestions,
        unmet: NDArray[np.bool_],
        live: LiveView,
        scores: NDArray[np.float32],
        last_base: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of what is suggested and no candidate, as far as it can reach the list.

        What the search did not find has at most `last_base` without the suggestion. Delta, trending and moved rows are
        always candidates: these are rows of the snapshot, at their own vectors.
        """
        bar = -np.inf
        if query.wanted <= len(scores):
            bar = float(np.partition(scores, -query.wanted)[-query.wanted] - self._intercept)
        # No boost of theirs is above `outside`: the trending are candidates.
        places = np.flatnonzero(unmet & (suggested.gains >= np.float32(bar - last_base - live.outside)))
        rows = suggested.rows[places]
        extra: NDArray[np.float32] = self._vectors[rows] @ query.vector + self._bias[rows] + live.boosts[rows]
        extra += suggested.gains[places] + self._intercept
        self._exclude(query.excluded, extra, rows)
        return extra, rows

    def _exclude(self, excluded: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        if not len(excluded):
            return
        # Marking and looking up costs 3 us; np.isin sorts and costs 20.
        inside = excluded[excluded < self._base_count]
        self._marks[inside] = True
        main = rows < self._base_count
        scores[main & self._marks[np.where(main, rows, 0)]] = -np.inf
        self._marks[inside] = False
        if len(inside) < len(excluded):
            scores[np.isin(rows, excluded[excluded >= self._base_count])] = -np.inf


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64] | None, count: int) -> Ranking:
    """The best `count` of one query; `rows` None: scores are by row. -inf is left out; ties go to the first."""
    best = best_places(scores, min(count, len(scores)))
    best = best[scores[best] > -np.inf]
    return Ranking(best if rows is None else rows[best], scores[best], True)
