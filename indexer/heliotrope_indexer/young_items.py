"""How the server moves an item that the snapshot hardly knows, fitted on items that it knows well.

The gradient of log softmax(q_u . x_i) for a positive event (u, i), with respect to x_i, is q_u - E[q], where
q_u = sum_h v_h A_h is the user's query just before the event. So an item with few events moves along the mean of
z_u = q_u - query_mean over its n distinct users, as far as they outweigh its text and its known events:

    r_i = step * Z_i / (n + known_i + c),    Z_i = sum over its users of z_u,    |z_u| <= max_query, |r_i| <= max_norm

Here well-known items play young ones: their vector is what their text says, their first users move them, and step, c
and max_query are those with which they rank best for later users. No choice lets one user alone move an item by more
than half of max_norm, which is how far the events move a well-known item: what fake users can do is bounded by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from heliotrope_indexer.events import EventTable
from heliotrope_indexer.parameters import Parameters, YoungItems
from heliotrope_indexer.replay import event_gains

MIN_USERS = 10
"""Users that make an item well-known enough to play a young one."""
MIN_ITEMS = 10
"""Fewer such items, and nothing is fitted: young items keep the vector of their text."""
_ITEMS = 400
_USERS = (1, 5, 20)
"""After how many users the played items are ranked."""
_TARGETS = 8
_MEAN_SAMPLE = 4_000
_SCORE_CELLS = 40_000_000
_SHRINKAGES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_SHARES = (0.03, 0.06, 0.12, 0.25, 0.5)
"""How far the first user may move an item, as a share of max_norm."""
_QUANTILES = (0.1, 0.5, 0.9)
"""Of the lengths of z_u: max_query. A low one takes only the direction of what a user says."""


@dataclass(frozen=True)
class YoungFit:
    """What the snapshot holds for young items."""

    parameters: YoungItems
    query_mean: NDArray[np.float32]
    """(d,): the mean query of all positive events."""
    gain: dict[str, float]
    """Mean 1 / log2(1 + rank) of the later users, without and with what their first 1, 5, 20 users taught."""


def fit_young_items(
    vectors: NDArray[np.float32],
    text_vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    prior: NDArray[np.float32],
    scoring_matrices: NDArray[np.float32],
    parameters: Parameters,
    events: EventTable,
    *,
    seed: int = 0,
) -> YoungFit | None:
    """Step, c and bounds from the training events; None where too little is known or no step helps.

    `vectors` (n, d) are the learnt item vectors, `text_vectors` (n, d) what they would be without events, `bias` (n,),
    `prior` (d,), `scoring_matrices` (H, d, d).
    """
    rng = np.random.default_rng(seed)
    first = first_positives(events, parameters, len(vectors))
    played = _draw(events.row[first], rng, max(_SCORE_CELLS // len(vectors) // _TARGETS, MIN_ITEMS))
    if len(played) < MIN_ITEMS:
        return None

    def queries(positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return queries_before(events, positions, vectors, prior, scoring_matrices, parameters)

    mean = queries(rng.permutation(first)[:_MEAN_SAMPLE]).mean(axis=0)
    deviations = [queries(first[donors]) - mean for _, donors, _ in played]
    norms = np.linalg.norm(np.concatenate(deviations), axis=1)
    items = np.array([item for item, _, _ in played])
    residuals = (vectors[items] - text_vectors[items]).astype(np.float64)
    max_norm = float(np.quantile(np.linalg.norm(residuals, axis=1), 0.95))
    if not max_norm > 1e-6 or not float(np.quantile(norms, _QUANTILES[0])) > 1e-6:
        return None
    stage = _Stage(vectors, text_vectors, bias, items, [queries(first[targets]) for _, _, targets in played])
    options: list[YoungItems] = []
    own_scores = [stage.own_scores(np.zeros_like(residuals))]
    used = {count: np.array([[min(count, len(each))] for each in deviations]) for count in _USERS}
    for quantile in _QUANTILES:
        max_query = float(np.quantile(norms, quantile))
        says = [clipped(each.astype(np.float64), max_query) for each in deviations]
        sums = {count: np.stack([each[:count].sum(axis=0) for each in says]) for count in _USERS}
        for share in _SHARES:
            for shrinkage in _SHRINKAGES:
                step = share * max_norm * (1.0 + shrinkage) / max_query
                options.append(
                    YoungItems(
                        below_events=max(1, round(shrinkage)),
                        step=step,
                        shrinkage=shrinkage,
                        max_query=max_query,
                        max_norm=max_norm,
                    )
                )
                for count in _USERS:
                    moves = clipped(step * sums[count] / (used[count] + shrinkage), max_norm)
                    own_scores.append(stage.own_scores(moves))
    quality = stage.quality(np.stack(own_scores, axis=1))
    by_option = quality[1:].reshape(len(options), len(_USERS))
    best = int(by_option.mean(axis=1).argmax())
    if by_option[best].mean() <= quality[0]:
        return None
    gain = {"0": round(float(quality[0]), 4)}
    gain |= {str(count): round(float(value), 4) for count, value in zip(_USERS, by_option[best], strict=True)}
    return YoungFit(options[best], mean, gain)


def first_positives(events: EventTable, parameters: Parameters, n: int) -> NDArray[np.int64]:
    """Positions of each user's first positive event on each item, of users who had done something before."""
    moving = event_gains(events, parameters)
    began = np.full(len(events.user_ids), len(events))
    np.minimum.at(began, events.user, np.where(moving != 0.0, np.arange(len(events)), len(events)))
    positions = np.flatnonzero(moving > 0.0)
    _, first = np.unique(events.user[positions] * n + events.row[positions], return_index=True)
    positions = positions[np.sort(first)]
    answered: NDArray[np.int64] = positions[began[events.user[positions]] < positions]
    return answered


def queries_before(
    events: EventTable,
    positions: NDArray[np.int64],
    vectors: NDArray[np.float32],
    prior: NDArray[np.float32],
    scoring_matrices: NDArray[np.float32],
    parameters: Parameters,
) -> NDArray[np.float32]:
    """q_u = sum_h v_h A_h (len(positions), d) of the users of events, each as it was just before the event."""
    order = np.argsort(events.user, kind="stable")
    starts = np.searchsorted(events.user[order], np.arange(len(events.user_ids)))
    place = np.empty(len(events), dtype=np.int64)
    place[order] = np.arange(len(events))
    gains = event_gains(events, parameters)
    answers = np.zeros((len(positions), vectors.shape[1]), dtype=np.float32)
    for begin in range(0, len(positions), 1_000):
        chunk = positions[begin : begin + 1_000]
        starting = starts[events.user[chunk]]
        lengths = place[chunk] - starting
        target = np.repeat(np.arange(len(chunk)), lengths)
        offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        source = order[np.repeat(starting, lengths) + offsets]
        ages_s = events.time[chunk][target] - events.time[source]
        for half_life_s, kappa, matrix in zip(
            parameters.half_lives_s, parameters.kappas, scoring_matrices, strict=True
        ):
            weights = gains[source] * np.exp2(-ages_s / half_life_s)
            shape = (len(chunk), len(vectors))
            sums = sp.csr_matrix((weights, (target, events.row[source])), shape=shape) @ vectors
            masses = np.bincount(target, weights=np.abs(weights), minlength=len(chunk))
            interest = ((kappa * prior + sums) / (kappa + masses)[:, None]).astype(np.float32)
            answers[begin : begin + len(chunk)] += interest @ matrix
    return answers


def clipped(rows: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Rows (m, d), those longer than `limit` shortened to it."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    shortened: NDArray[np.float64] = rows * np.minimum(1.0, limit / np.maximum(norms, 1e-12))
    return shortened


class _Stage:
    """Ranks played items against the whole catalogue for their later users."""

    def __init__(
        self,
        vectors: NDArray[np.float32],
        text_vectors: NDArray[np.float32],
        bias: NDArray[np.float32],
        items: NDArray[np.int64],
        queries: list[NDArray[np.float32]],
    ) -> None:
        self._queries = np.concatenate(queries)
        self._item = np.repeat(np.arange(len(items)), [len(each) for each in queries])
        self._rows = items[self._item]
        self._vectors, self._bias = vectors, bias
        # A young item has no bias of its own: that, too, comes from its events.
        self._text = np.einsum("ud,ud->u", self._queries, text_vectors[self._rows])

    def own_scores(self, moves: NDArray[np.float64]) -> NDArray[np.float32]:
        """Scores (users,) of the played items, moved by (items, d), for their later users."""
        scores: NDArray[np.float32] = self._text + np.einsum(
            "ud,ud->u", self._queries, moves.astype(np.float32)[self._item]
        )
        return scores

    def quality(self, own: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean 1 / log2(1 + rank) of each of m ways to score the played items, (users, m)."""
        total = np.zeros(own.shape[1])
        for begin in range(0, len(own), 64):
            scores = self._queries[begin : begin + 64] @ self._vectors.T + self._bias
            scores[np.arange(len(scores)), self._rows[begin : begin + 64]] = -np.inf
            scores.sort(axis=1)
            for others, mine in zip(scores, own[begin : begin + 64], strict=True):
                higher = len(others) - np.searchsorted(others, mine, side="right")
                total += 1.0 / np.log2(2.0 + higher)
        return total / len(own)


def _draw(
    rows: NDArray[np.int64], rng: np.random.Generator, limit: int
) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Well-known items with the places (into `rows`) of their first users and of some later ones."""
    order = np.argsort(rows, kind="stable")
    items, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    known = np.flatnonzero(counts >= MIN_USERS)
    played = []
    for each in np.sort(rng.permutation(known)[: min(limit, _ITEMS)]):
        places = order[starts[each] : starts[each] + counts[each]]
        donors = min(_USERS[-1], len(places) // 2)
        later = rng.permutation(places[donors:])[:_TARGETS]
        played.append((int(items[each]), places[:donors], np.sort(later)))
    return played
