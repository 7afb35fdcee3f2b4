"""Where items stand among all that may be recommended: exact ranks, by a pass over the whole catalogue.

A list is made of what a search finds; a rank is a statement about everything. So it takes every score: 100,000 items of
64 dimensions for 30 queries are 0.4 GFLOP in one matrix product. It runs in a thread, on a LiveView that is `held`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.freshness import FreshView
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LazyBoosts, LiveView
from heliotrope_server.retriever import ExactRetriever
from heliotrope_server.scoring import Query

_CELLS = 1 << 24
"""Scores that are held at once: 64 MB."""


class Case(NamedTuple):
    """One query and the rows (t,) that are asked about; `boost` is a row with another live boost than in the view."""

    query: Query
    rows: NDArray[np.int64]
    boost: tuple[int, float] | None = None


class Standing(NamedTuple):
    """Scores (t,) of the rows with every term, and their ranks (t,): 1 + how many that may be recommended have more.

    Among equal scores the smaller row comes first, as in a list. `first_pass` (t,) are the ranks by taste and bias
    alone. `eligible` is how many rows may be recommended, `cut_off` the query's wanted-th best score among them, -inf
    where there are fewer.
    """

    scores: list[float]
    ranks: list[int]
    first_pass: list[int]
    eligible: int
    cut_off: float


def held(live: LiveView) -> LiveView:
    """The view with copies of what events and upserts would change under the hands of a thread."""
    boosts = live.boosts
    if isinstance(boosts, LazyBoosts):
        boosts = LazyBoosts(boosts.counts.copy(), boosts.factor, boosts.weight)
    return live._replace(
        boosts=boosts,
        delta_vectors=live.delta_vectors.copy(),
        delta_bias=live.delta_bias.copy(),
        alive=None if live.alive is None else live.alive.copy(),
    )


def standings(
    catalogue: LiveCatalogue, live: LiveView, fresh: FreshView | None, cases: Sequence[Case]
) -> list[Standing]:
    """One for each case."""
    exact = ExactRetriever(catalogue)
    terms: NDArray[np.float32] = live.boosts[:] + np.float32(catalogue.parameters.intercept)
    if fresh is not None:
        terms[fresh.rows] += fresh.boosts
    at_once = max(1, _CELLS // len(terms))
    found: list[Standing] = []
    for start in range(0, len(cases), at_once):
        chunk = cases[start : start + at_once]
        base = exact.base_scores(np.stack([case.query.vector for case in chunk]), live)
        found += [_standing(case, base_scores, terms, live) for case, base_scores in zip(chunk, base, strict=True)]
    return found


def _standing(case: Case, base_scores: NDArray[np.float32], terms: NDArray[np.float32], live: LiveView) -> Standing:
    query = case.query
    may = np.ones(len(base_scores), dtype=np.bool_) if live.alive is None else live.alive.copy()
    may[query.excluded] = False
    if query.allowed is not None:
        may &= query.allowed.mask
    scores = base_scores + terms
    if query.suggestions is not None:
        scores[query.suggestions.rows] += query.suggestions.gains
    if case.boost is not None:
        row, boost = case.boost
        scores[row] += np.float32(boost) - live.boosts[row]
    eligible = int(np.count_nonzero(may))
    cut_off = -np.inf
    if eligible >= query.wanted:
        cut_off = float(np.partition(scores[may], eligible - query.wanted)[eligible - query.wanted])
    return Standing(
        scores[case.rows].tolist(),
        [_rank(scores, may, row) for row in case.rows.tolist()],
        [_rank(base_scores, may, row) for row in case.rows.tolist()],
        eligible,
        cut_off,
    )


def _rank(scores: NDArray[np.float32], may: NDArray[np.bool_], row: int) -> int:
    better = np.count_nonzero(may & (scores > scores[row]))
    return 1 + int(better) + int(np.count_nonzero(may[:row] & (scores[:row] == scores[row])))
