"""All that changes between two searches, taken on the event loop at one moment."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue

TRENDING = 512


class LazyBoosts:
    """gamma * log1p(count_i(t)) of the rows (any shape) that are asked for, float32; stands in for the array (n,).

    `counts` (n,) are as of a landmark; times `factor` they are as of t. `weight` is gamma.
    """

    def __init__(self, counts: NDArray[np.float64], factor: float, weight: float) -> None:
        self.counts, self.factor, self.weight = counts, factor, weight

    def __getitem__(self, rows: NDArray[np.int64] | int | slice) -> NDArray[np.float32]:
        boosts: NDArray[np.float32] = np.float32(self.weight) * np.log1p(
            (self.counts[rows] * self.factor).astype(np.float32)
        )
        return boosts


class LiveView(NamedTuple):
    """The live terms and rows of one catalogue.

    `boosts` (n,) is gamma * log1p(count) by row, or what computes it for the rows that it is indexed by; `trending` are
    the rows with the largest, at most TRENDING of them, with their vectors and what their score holds beyond taste
    (bias and boost); no other row has a boost above `outside`. `moved` are the snapshot's rows that are served with an
    online residual, never among the trending, with their vectors and terms in the same way; `moved_delta` are such rows
    of the delta. `alive` is None when no row is dead.
    """

    boosts: NDArray[np.float32] | LazyBoosts
    trending: NDArray[np.int64]
    trending_vectors: NDArray[np.float32]
    trending_terms: NDArray[np.float32]
    outside: float
    moved: NDArray[np.int64]
    moved_vectors: NDArray[np.float32]
    moved_terms: NDArray[np.float32]
    moved_delta: NDArray[np.int64]
    delta_vectors: NDArray[np.float32]
    delta_bias: NDArray[np.float32]
    alive: NDArray[np.bool_] | None


def live_view(catalogue: LiveCatalogue, counts: NDArray[np.float64], weight: float | None = None) -> LiveView:
    """The view for decayed counts (n,) of the catalogue's rows; `weight` is gamma, None that of the snapshot."""
    if weight is None:
        weight = catalogue.parameters.live_popularity_weight
    boosts = np.zeros(len(counts), dtype=np.float32)
    trending: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    outside = 0.0
    moved = catalogue.moved_rows().base
    busy = np.flatnonzero(counts)
    if weight > 0.0 and len(busy):
        boosts[busy] = weight * np.log1p(counts[busy])
        trending = np.setdiff1d(busy, moved, assume_unique=True) if len(moved) else busy
        if len(trending) > TRENDING:
            order = np.argpartition(-boosts[trending], TRENDING)
            outside = float(boosts[trending[order[TRENDING]]])
            trending = trending[order[:TRENDING]]
    return view_of(catalogue, boosts, trending, *catalogue.served_rows(trending), outside)


def view_of(
    catalogue: LiveCatalogue,
    boosts: NDArray[np.float32] | LazyBoosts,
    trending: NDArray[np.int64],
    trending_vectors: NDArray[np.float32],
    trending_bias: NDArray[np.float32],
    outside: float,
) -> LiveView:
    """The view with these trending rows, none of which has moved, and boosts."""
    moved, moved_vectors, moved_delta = catalogue.moved_rows()
    return LiveView(
        boosts,
        trending,
        trending_vectors,
        trending_bias + boosts[trending],
        outside,
        moved,
        moved_vectors,
        catalogue.base_bias[moved] + boosts[moved],
        moved_delta,
        catalogue.delta_vectors,
        catalogue.delta_bias,
        catalogue.alive[: catalogue.size] if catalogue.alive_count < catalogue.size else None,
    )
