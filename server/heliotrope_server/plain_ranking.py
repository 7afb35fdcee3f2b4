"""The exact scoring pass in plain NumPy: what the compiled kernel does, one query at a time."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search import Best
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.scoring import Query, exact_scores


class CandidateRanking(Protocol):
    """Scores the candidates of queries exactly; ties go to the smaller row."""

    def best(
        self,
        queries: Sequence[Query],
        found: NDArray[np.int64] | None,
        live: LiveView,
        wanted: int,
    ) -> Best:
        """The best `wanted` for each of m queries.

        Candidates are the head, all rows of the view, what is suggested, and the rows `found` (m, k), -1 for none; None
        where nothing was.
        """
        ...


class PlainRanking:
    """For machines without a compiler, and what the kernel is tested against."""

    def __init__(self, catalogue: LiveCatalogue, head: NDArray[np.int64]) -> None:
        self._catalogue = catalogue
        self._head = head

    def best(
        self,
        queries: Sequence[Query],
        found: NDArray[np.int64] | None,
        live: LiveView,
        wanted: int,
    ) -> Best:
        """See CandidateRanking."""
        catalogue, m = self._catalogue, len(queries)
        best = Best(
            np.zeros((m, wanted), dtype=np.int64),
            np.full((m, wanted), -np.inf, dtype=np.float32),
            np.zeros(m, dtype=np.int64),
            np.full(m, np.inf, dtype=np.float32),
        )
        delta = np.arange(catalogue.base_count, catalogue.base_count + len(live.delta_bias))
        always = np.concatenate([self._head, live.trending, live.moved, delta])
        for place, query in enumerate(queries):
            hits = always[:0] if found is None else found[place][found[place] >= 0]
            if len(hits):
                base = catalogue.base_vectors[hits] @ query.vector + catalogue.base_bias[hits]
                best.last_base[place] = base.min()
            suggested = always[:0] if query.suggestions is None else query.suggestions.rows
            rows = np.unique(np.concatenate([always, hits, suggested]))
            scores = exact_scores(catalogue, live, query, rows)
            order = np.lexsort((rows, -scores))[:wanted]
            order = order[scores[order] > -np.inf]
            best.sizes[place] = size = len(order)
            best.rows[place, :size], best.scores[place, :size] = rows[order], scores[order]
        return best
