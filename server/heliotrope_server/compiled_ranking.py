"""The exact scoring pass by the compiled kernel: what PlainRanking does, for a batch in one call, with or without a
search of the index of its own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search import Best, Block, Extras, ScannedIndex, SearchKernel, joined
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LazyBoosts, LiveView
from heliotrope_server.scoring import Query


class CompiledRanking:
    """Belongs to one LiveCatalogue, and to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue, head: NDArray[np.int64]) -> None:
        """`head` are the rows that are scored for every query. Raises OSError where there is no kernel."""
        intercept = catalogue.parameters.intercept
        self._kernel = SearchKernel(catalogue.base_vectors, catalogue.base_bias, head, intercept)
        self._base_count, self._head = catalogue.base_count, head
        self._live: LiveView | None = None

    def scan(self, index: ScannedIndex, probes: int, margin: float) -> None:
        """Searches an index too from now on, as SearchKernel.scan."""
        self._kernel.scan(index, probes, margin)

    def best(
        self,
        queries: Sequence[Query],
        found: NDArray[np.int64] | None,
        live: LiveView,
        wanted: int,
        allowed: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> Best:
        """See CandidateRanking; `allowed` (n,) are the only rows that a query may get."""
        if live is not self._live:
            self._kernel.use(_extras(live, self._base_count, self._head))
            self._live = live
        return self._kernel.best(
            [query.vector for query in queries],
            wanted,
            [query.excluded for query in queries],
            found=found,
            suggested=_suggested(queries),
            allowed=allowed,
        )


def _suggested(
    queries: Sequence[Query],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]] | None:
    said = [query.suggestions for query in queries]
    gains = [suggestions.gains for suggestions in said if suggestions is not None]
    if not gains:
        return None
    rows, ends = joined([_NO_ROWS if suggestions is None else suggestions.rows for suggestions in said])
    return rows, ends, np.concatenate(gains)


def _extras(live: LiveView, base_count: int, head: NDArray[np.int64]) -> Extras:
    boosts, size = live.boosts, base_count + len(live.delta_bias)
    fresh = None
    if size > base_count:
        fresh = Block(np.arange(base_count, size), live.delta_vectors, live.delta_bias + boosts[base_count:size])
    extras = Extras(
        size,
        outside=live.outside,
        moved=Block(live.moved, live.moved_vectors, live.moved_terms) if len(live.moved) else None,
        fresh=fresh,
        trending=Block(live.trending, live.trending_vectors, live.trending_terms) if len(live.trending) else None,
        alive=live.alive,
        head_boosts=boosts[head],
    )
    if isinstance(boosts, LazyBoosts):
        return extras._replace(counts=boosts.counts, factor=boosts.factor, weight=boosts.weight)
    return extras._replace(boosts=boosts)


_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
