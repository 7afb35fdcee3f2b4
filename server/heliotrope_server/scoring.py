"""The exact scores of some rows for one query.

score(u, i) = q . x_i + b_i + gamma * log1p(count_i(t)) + suggestion_ui + intercept,    q = sum_h v_h A_h
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.allowed_rows import AllowedRows
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.neighbours import Suggestions


class Query(NamedTuple):
    """One user's question to the retriever: the query vector q (d,), how many rows, the rows to leave out, what the
    user's liked items say of their neighbours, and the rows to choose among (None: all).
    """

    vector: NDArray[np.float32]
    wanted: int
    excluded: NDArray[np.int64]
    suggestions: Suggestions | None = None
    allowed: AllowedRows | None = None


def item_vectors(catalogue: LiveCatalogue, live: LiveView, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """x_i of some rows (m,), as they are scored: (m, d)."""
    if len(live.delta_bias):
        main = rows < catalogue.base_count
        vectors = np.empty((len(rows), catalogue.dimension), dtype=np.float32)
        vectors[main] = catalogue.base_vectors[rows[main]]
        vectors[~main] = live.delta_vectors[rows[~main] - catalogue.base_count]
    else:
        vectors = catalogue.base_vectors[rows]
    if len(live.moved):
        order = np.argsort(live.moved)
        places = order[np.searchsorted(live.moved, rows, sorter=order).clip(max=len(order) - 1)]
        moved = live.moved[places] == rows
        vectors[moved] = live.moved_vectors[places[moved]]
    return vectors


def item_biases(catalogue: LiveCatalogue, live: LiveView, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """b_i of some rows (m,), (m,)."""
    if not len(live.delta_bias):
        return catalogue.base_bias[rows]
    main = rows < catalogue.base_count
    biases = np.empty(len(rows), dtype=np.float32)
    biases[main] = catalogue.base_bias[rows[main]]
    biases[~main] = live.delta_bias[rows[~main] - catalogue.base_count]
    return biases


def exact_scores(
    catalogue: LiveCatalogue, live: LiveView, query: Query, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The score that a ranking would give some rows (m,), (m,); -inf where it would leave them out."""
    scores: NDArray[np.float32] = item_vectors(catalogue, live, rows) @ query.vector
    scores += item_biases(catalogue, live, rows) + live.boosts[rows] + np.float32(catalogue.parameters.intercept)
    if query.suggestions is not None:
        scores += query.suggestions.of_rows(rows)
    scores[np.isin(rows, query.excluded)] = -np.inf
    if live.alive is not None:
        scores[~live.alive[rows]] = -np.inf
    if query.allowed is not None:
        scores[~query.allowed.contains(rows)] = -np.inf
    return scores
