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

TAIL = 256
"""Rows of the delta from which they are sealed: so many are scored in some 3 us."""
_AT_ONCE = 4_096


class CompiledRanking:
    """Belongs to one LiveCatalogue, and to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue, head: NDArray[np.int64]) -> None:
        """`head` are the rows that are scored for every query. Raises OSError where there is no kernel."""
        intercept = catalogue.parameters.intercept
        self._kernel = SearchKernel(catalogue.base_vectors, catalogue.base_bias, head, intercept)
        self._catalogue, self._head = catalogue, head
        self._scans = False
        # Of the delta: how many rows are sealed, or were dead before they could be, and which of them the codes can't
        # hold. These are scored for every query, as the rows after the sealed ones are.
        self._sealed = 0
        self._unsealable = _NO_ROWS
        self._live: LiveView | None = None

    def scan(self, index: ScannedIndex, probes: int, margin: float) -> None:
        """Searches an index too from now on, as SearchKernel.scan, and all of the delta that there is."""
        self._kernel.scan(index, probes, margin)
        self._scans = True
        self.follow()

    def follow(self) -> None:
        """Seals the tail of the delta where it has become too long to be scored for every query.

        Some microseconds a row; where no index is scanned, nothing.
        """
        catalogue = self._catalogue
        if not self._scans or len(catalogue.delta) - self._sealed < TAIL:
            return
        own_vectors, bias, base_count = catalogue.delta_own_vectors, catalogue.delta_bias, catalogue.base_count
        while self._sealed < len(catalogue.delta):
            begin, end = self._sealed, min(self._sealed + _AT_ONCE, len(catalogue.delta))
            places = begin + np.flatnonzero(catalogue.alive[base_count + begin : base_count + end])
            taken = self._kernel.add(base_count + places, own_vectors[places], bias[places])
            self._unsealable = np.concatenate([self._unsealable, base_count + places[~taken]])
            self._sealed = end
        self._live = None

    def best(
        self,
        queries: Sequence[Query],
        found: NDArray[np.int64] | None,
        live: LiveView,
        wanted: int,
        allowed: Sequence[NDArray[np.bool_] | None] | None = None,
    ) -> Best:
        """See CandidateRanking; `allowed` (n,) are the only rows that a query may get."""
        self._use(live)
        return self._kernel.best(
            [query.vector for query in queries],
            wanted,
            [query.excluded for query in queries],
            found=found,
            suggested=_suggested(queries),
            allowed=allowed,
        )

    def best_of_delta(self, query: Query, live: LiveView, allowed: NDArray[np.bool_]) -> Best:
        """The best of the rows of the delta that are `allowed` (n,), and of others that happen to be met."""
        self._use(live)
        return self._kernel.best(
            [query.vector],
            query.wanted,
            [query.excluded],
            suggested=_suggested([query]),
            allowed=[allowed],
            added_only=True,
        )

    def _use(self, live: LiveView) -> None:
        if live is not self._live:
            self._kernel.use(self._extras(live))
            self._live = live

    def _extras(self, live: LiveView) -> Extras:
        boosts, base_count = live.boosts, self._catalogue.base_count
        size = base_count + len(live.delta_bias)
        extras = Extras(
            size,
            outside=live.outside,
            moved=Block(live.moved, live.moved_vectors, live.moved_terms) if len(live.moved) else None,
            fresh=self._fresh(live, size) if size > base_count else None,
            trending=Block(live.trending, live.trending_vectors, live.trending_terms) if len(live.trending) else None,
            beyond=(live.delta_vectors, live.delta_bias) if size > base_count else None,
            alive=live.alive,
            head_boosts=boosts[self._head],
        )
        if isinstance(boosts, LazyBoosts):
            return extras._replace(counts=boosts.counts, factor=boosts.factor, weight=boosts.weight)
        return extras._replace(boosts=boosts)

    def _fresh(self, live: LiveView, size: int) -> Block:
        """The rows of the delta that are scored for every query: those that are not sealed, and those whose codes are
        not of what they are served with.
        """
        base_count = self._catalogue.base_count
        tail = np.arange(base_count + self._sealed, size)
        sealed = np.concatenate([self._unsealable, live.moved_delta[live.moved_delta < base_count + self._sealed]])
        sealed = sealed[sealed < size]  # the view may be older than what was sealed
        if live.alive is not None:
            sealed = sealed[live.alive[sealed]]
        rows = np.concatenate([sealed, tail])
        # Without a copy where nothing is sealed.
        places = rows - base_count if len(sealed) else slice(self._sealed, None)
        return Block(rows, live.delta_vectors[places], live.delta_bias[places] + live.boosts[rows])


def _suggested(
    queries: Sequence[Query],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]] | None:
    said = [query.suggestions for query in queries]
    gains = [suggestions.gains for suggestions in said if suggestions is not None]
    if not gains:
        return None
    rows, ends = joined([_NO_ROWS if suggestions is None else suggestions.rows for suggestions in said])
    return rows, ends, np.concatenate(gains)


_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
