"""How much of the true top ten an answer held: the whole catalogue is scored for one question, in small steps."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.scoring import Query, exact_scores

TOP = 10
_BLOCK = 32_768
_ROUNDING = 1e-5
"""Scores that are closer than this, relative to their size, count as equal: the order of additions differs."""


class Sample(NamedTuple):
    """A question without a filter as the retriever had it, and the rows (k,) that it found, best first."""

    catalogue: LiveCatalogue
    query: Query
    live: LiveView
    rows: NDArray[np.int64]


def recall_at_10(sample: Sample, pause: Callable[[], None]) -> float:
    """Share of the ten best items, or of all that the question asked for if fewer, that were found; 1 where there are
    none. Scores with every term, the live ones included, as of the moment of the question. `pause` is called between
    blocks of the catalogue.
    """
    catalogue, query, live, found = sample
    wanted = min(TOP, query.wanted)
    best = _best_scores(catalogue, query, live, wanted, pause)
    if not len(best):
        return 1.0
    cut_off = float(best[-1]) - _ROUNDING * max(1.0, abs(float(best[-1])))
    hits = exact_scores(catalogue, live, query, found[:wanted]) >= cut_off
    return min(1.0, float(np.count_nonzero(hits)) / len(best))


def _best_scores(
    catalogue: LiveCatalogue, query: Query, live: LiveView, wanted: int, pause: Callable[[], None]
) -> NDArray[np.float32]:
    """The `wanted` largest scores, descending."""
    base, intercept = catalogue.base_count, np.float32(catalogue.parameters.intercept)
    # Rows of the snapshot whose score has terms of their own.
    special = [live.moved, query.excluded]
    if query.suggestions is not None:
        special.append(query.suggestions.rows)
    apart = np.unique(np.concatenate(special))
    apart = apart[apart < base]
    best = np.empty(0, dtype=np.float32)
    for start in range(0, base, _BLOCK):
        end = min(start + _BLOCK, base)
        scores = catalogue.base_vectors[start:end] @ query.vector
        scores += catalogue.base_bias[start:end]
        scores += live.boosts[start:end]
        scores += intercept
        if live.alive is not None:
            scores[~live.alive[start:end]] = -np.inf
        first, last = np.searchsorted(apart, (start, end))
        scores[apart[first:last] - start] = -np.inf
        best = _merged(best, scores, wanted)
        pause()
    others = np.concatenate([apart, np.arange(base, base + len(live.delta_bias))])
    return _merged(best, exact_scores(catalogue, live, query, others), wanted)


def _merged(best: NDArray[np.float32], scores: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    if len(scores) > wanted:
        scores = np.partition(scores, -wanted)[-wanted:]
    joined = np.sort(np.concatenate([best, scores]))[::-1][:wanted]
    return joined[joined > -np.inf]
