"""Candidate search, and the list that the exact scoring pass makes of it.

Three retrievers, one contract. `ExactRetriever` scores everything with one matrix product. The others search an index
over [x_i ; b_i] and score what it finds exactly, in float32, with every term (see scoring): `KernelRetriever` in one
compiled call, `FaissRetriever` by FAISS's own search where there is no compiler, or an index on a GPU. The head (the
rows of the largest bias, which the index leaves out), the delta, the trending rows and the suggested ones (see
neighbours) are always among the candidates.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import head_rows
from heliotrope_indexer.search import ScannedIndex, kernel_problem
from heliotrope_server.allowed_rows import AllowedRows, BaseRows
from heliotrope_server.compiled_ranking import CompiledRanking
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.plain_ranking import CandidateRanking, PlainRanking
from heliotrope_server.scoring import Query
from heliotrope_server.selection import best_places

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 4096
WIDE = 0.95
"""Share of the snapshot that a filter admits from which the plain search passes over the others, as over dead rows."""
_MASKS = 8
WIDENING = 4
"""How many times as many candidates a question gets whose first answer is not certified."""


class Ranking(NamedTuple):
    """Rows, best first, with their exact scores, intercept included. `certified`: no live term was missed."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    certified: bool


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

    def follow(self) -> None:
        """Takes in what was added to the catalogue, so that it costs later questions less; they find it anyway."""
        ...


def make_retriever(catalogue: LiveCatalogue) -> "Retriever":
    """The retriever that the snapshot was built for."""
    if catalogue.parameters.search is None:
        return ExactRetriever(catalogue)
    problem = kernel_problem()
    if problem is None:
        return KernelRetriever(catalogue)
    logger.warning("searching without the compiled kernel, which takes some ten times as long: %s", problem)
    return FaissRetriever(catalogue)


class ExactRetriever:
    """Scores the whole catalogue by one matrix product (NumPy's BLAS). The right choice up to some 20,000 items."""

    description = "exact"

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._base_count = catalogue.base_count
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._vectors = catalogue.snapshot.vectors.view(np.ndarray)
        self._bias = catalogue.snapshot.bias.view(np.ndarray)

    def follow(self) -> None:
        """Everything is scored for every question."""

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        scores = self.base_scores(np.stack([query.vector for query in queries]), live)
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

    def base_scores(self, vectors: NDArray[np.float32], live: LiveView) -> NDArray[np.float32]:
        """Taste and bias, q . x_i + b_i, of all rows, dead ones included, for queries (m, d): (m, n)."""
        base_count = self._base_count
        scores = np.empty((len(vectors), base_count + len(live.delta_bias)), dtype=np.float32)
        np.matmul(vectors, self._vectors.T, out=scores[:, :base_count])
        scores[:, :base_count] += self._bias
        if len(live.moved):
            scores[:, live.moved] = vectors @ live.moved_vectors.T + self._bias[live.moved]
        if len(live.delta_bias):
            scores[:, base_count:] = vectors @ live.delta_vectors.T + live.delta_bias
        return scores


class KernelRetriever:
    """Searches the snapshot's index and scores in one compiled call."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        # Imported here: it makes rankings too.
        from heliotrope_server.filtered import FilteredRetriever

        search, index = catalogue.parameters.search, catalogue.snapshot.index()
        if search is None or index is None:
            raise ValueError(f"snapshot {catalogue.version} holds no index")
        head = head_rows(catalogue.base_bias, search.head)
        self._ranking = CompiledRanking(catalogue, head)
        self._ranking.scan(ScannedIndex(index), search.nprobe, search.margin)
        self._filtered = FilteredRetriever(catalogue, index, self._best_of_delta)
        self._masks: dict[BaseRows, NDArray[np.bool_]] = {}
        # For the rare user who has seen all that is near.
        self._exhaustive = ExactRetriever(catalogue)
        factory = catalogue.snapshot.manifest.quality.get("index", type(index).__name__)
        self.description = f"kernel {factory} nprobe {search.nprobe} margin {search.margin:g} head {search.head}"

    def follow(self) -> None:
        """Seals the delta into lists beside those of the index (see CompiledRanking.follow)."""
        self._ranking.follow()

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        if any(self._narrow(query) for query in queries):
            return _rank_apart(self, self._filtered, self._narrow, queries, live)
        allowed = None
        if any(query.allowed is not None for query in queries):
            allowed = [None if query.allowed is None else self._mask(query.allowed) for query in queries]
        best = self._ranking.best(queries, None, live, max(query.wanted for query in queries), allowed)
        # What the search leaves aside has no boost that could bring it in: its bar allows for the largest.
        return [
            Ranking(best.rows[place, : query.wanted], best.scores[place, : query.wanted], True)
            if size >= query.wanted
            else self._exhaustive.rank([query], live)[0]
            for place, (query, size) in enumerate(zip(queries, best.sizes.tolist(), strict=True))
        ]

    def _best_of_delta(self, query: Query, live: LiveView) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best admitted rows of the delta, and some others, with their scores."""
        assert query.allowed is not None
        best = self._ranking.best_of_delta(query, live, self._mask(query.allowed))
        size = int(best.sizes[0])
        return best.rows[0, :size], best.scores[0, :size]

    def _narrow(self, query: Query) -> bool:
        allowed = query.allowed
        return allowed is not None and allowed.base.count < WIDE * allowed.base.size

    def _mask(self, allowed: AllowedRows) -> NDArray[np.bool_]:
        """The rows (n + m,), kept for the filters that were met last."""
        kept = self._masks.pop(allowed.base, None)
        if kept is None or len(kept) != allowed.base.size + len(allowed.delta):
            kept = allowed.mask
        self._masks[allowed.base] = kept
        if len(self._masks) > _MASKS:
            del self._masks[next(iter(self._masks))]
        return kept


class FaissRetriever:
    """Approximate candidates from the snapshot's FAISS index, exact scores from its mapped float32 vectors."""

    def __init__(self, catalogue: LiveCatalogue, index: CandidateIndex | None = None) -> None:
        """`index`, over all rows, stands in place of the snapshot's own."""
        # faiss takes 0.2 s to import and is not needed by small catalogues.
        import faiss

        from heliotrope_server.filtered import FilteredRetriever

        search = catalogue.parameters.search
        own = catalogue.snapshot.index()
        if search is None or own is None:
            raise ValueError(f"snapshot {catalogue.version} holds no index")
        self._dimension = catalogue.dimension
        self._base_count = catalogue.base_count
        self._intercept = np.float32(catalogue.parameters.intercept)
        self._index: CandidateIndex = own if index is None else index
        self._candidates = search.candidates
        self._parameters = faiss.SearchParametersIVF(nprobe=search.nprobe)  # type: ignore[call-arg]
        # An index that was brought holds the head too.
        head = head_rows(catalogue.base_bias, search.head if index is None else 0)
        compiled = kernel_problem() is None
        self._ranking: CandidateRanking = (CompiledRanking if compiled else PlainRanking)(catalogue, head)
        # An index that was brought knows no filters: the CPU searches its own for them.
        self._filtered = FilteredRetriever(catalogue, own)
        # For the rare user who has seen all that the index finds.
        self._exhaustive = ExactRetriever(catalogue)
        factory = catalogue.snapshot.manifest.quality.get("index", type(own).__name__)
        self.description = (
            f"faiss {factory} nprobe {search.nprobe} candidates {search.candidates} head {search.head}, "
            f"{'compiled' if compiled else 'plain'} scoring"
        )

    def follow(self) -> None:
        """The delta is scored for every question."""

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        if any(query.allowed is not None for query in queries):
            return _rank_apart(self, self._filtered, _filters, queries, live)
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

    def _breadth(self, query: Query) -> int:
        wanted = max(self._candidates, 2 * query.wanted)
        if 4 * len(query.excluded) > wanted:
            wanted += len(query.excluded)
        breadth = self._candidates
        while breadth < wanted:
            breadth *= 2
        return min(breadth, MAX_CANDIDATES, self._base_count)

    def _rank_group(self, queries: list[Query], live: LiveView, breadth: int) -> list[Ranking]:
        asked = np.zeros((len(queries), self._index.d), dtype=np.float32)
        for place, query in enumerate(queries):
            asked[place, : self._dimension] = query.vector
        asked[:, self._dimension] = 1.0
        _, found = self._index.search(asked, breadth, params=self._parameters)
        best = self._ranking.best(queries, found, live, max(query.wanted for query in queries))
        rankings = []
        for place, (query, size) in enumerate(zip(queries, best.sizes.tolist(), strict=True)):
            if size < query.wanted:
                rankings.append(self._exhaustive.rank([query], live)[0])
                continue
            ranking = Ranking(best.rows[place, : query.wanted], best.scores[place, : query.wanted], True)
            # A row that was not found has at most last_base + outside. (The search is approximate in its base scores;
            # what that costs is the index's measured recall.)
            if live.outside != 0.0:
                cut_off = float(ranking.scores[-1] - self._intercept)
                ranking = ranking._replace(certified=float(best.last_base[place]) + live.outside <= cut_off)
            rankings.append(ranking)
        return rankings


def _filters(query: Query) -> bool:
    return query.allowed is not None


def _rank_apart(
    plain: "KernelRetriever | FaissRetriever",
    filtered: Any,
    narrow: Callable[[Query], bool],
    queries: Sequence[Query],
    live: LiveView,
) -> list[Ranking]:
    """Queries that may choose among some rows only go another way."""
    bound = [narrow(query) for query in queries]
    free = [query for query, own_way in zip(queries, bound, strict=True) if not own_way]
    ranked = iter(plain.rank(free, live) if free else ())
    chosen = iter(filtered.rank([query for query, own_way in zip(queries, bound, strict=True) if own_way], live))
    return [next(chosen if own_way else ranked) for own_way in bound]


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64] | None, count: int) -> Ranking:
    """The best `count` of one query; `rows` None: scores are by row. -inf is left out; ties go to the first."""
    best = best_places(scores, min(count, len(scores)))
    best = best[scores[best] > -np.inf]
    return Ranking(best if rows is None else rows[best], scores[best], True)
