"""Replays histories and ranks each user's held-out item against the whole catalogue, by the served formula.

The protocol: each user's last positive event is the target; it and everything later of that user is held
out; all earlier events are replayed; items already seen are left out of the ranking; live counts know only
events before the target's time; equal scores share their expected rank, so a scorer that returns all zeros
scores chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from heliotrope_indexer.events import EventTable
from heliotrope_indexer.neighbours import Neighbours, liked_items
from heliotrope_indexer.parameters import EVENT_TYPES, Gain, Parameters

NEGATIVE = -np.inf


@dataclass(frozen=True)
class Quality:
    """How well the held-out items rank, means over the users."""

    users: int
    hit_rate_at_10: float
    ndcg_at_10: float


def hold_out(events: EventTable, positive_rating: float) -> tuple[EventTable, EventTable]:
    """(what remains for training and replay, one target event per user), by the protocol above.

    A user without a positive event keeps all their events and is no target; a target needs at least one
    earlier event.
    """
    rating = EVENT_TYPES.index("rating")
    liked = [EVENT_TYPES.index(name) for name in ("click", "purchase", "favorite", "share")]
    positive = np.isin(events.kind, liked) | ((events.kind == rating) & (events.value >= positive_rating))
    users = len(events.user_ids)
    last = np.full(users, -1)
    at = np.flatnonzero(positive)
    # Events are in order of time: a later assignment wins.
    last[events.user[at]] = at
    position = np.arange(len(events))
    keep = (last[events.user] < 0) | (position < last[events.user])
    remaining = events.select(keep)
    history = np.bincount(remaining.user, minlength=users)
    targets = np.sort(last[(last >= 0) & (history > 0)])
    return remaining, events.select(targets)


class Replay:
    """The histories of U target users, ready to be scored under many parameters. n is the number of items."""

    def __init__(self, events: EventTable, targets: EventTable, n: int) -> None:
        """`events` are all training events of all users (the live counts need them), `targets` one event
        per user.
        """
        self.n = n
        self.users = len(targets)
        self.target_row = targets.row
        self.target_time = targets.time
        self._events = events
        row_of_user = np.full(len(events.user_ids), -1)
        row_of_user[targets.user] = np.arange(self.users)
        own = np.flatnonzero(row_of_user[events.user] >= 0)
        self._user = row_of_user[events.user[own]]
        self._own = events.select(own)
        # Decay is read at the target's time; an event of equal time has age 0.
        self._age_s = np.maximum(targets.time[self._user] - self._own.time, 0.0)

    def interest(
        self,
        vectors: NDArray[np.float32],
        parameters: Parameters,
        prior: NDArray[np.float32],
        horizon: int,
    ) -> NDArray[np.float32]:
        """The interest vectors v_h (U, d) at the time of each target."""
        gains = event_gains(self._own, parameters)
        weights = gains * np.exp2(-self._age_s / parameters.half_lives_s[horizon])
        sums = sp.csr_matrix((weights, (self._user, self._own.row)), shape=(self.users, self.n)) @ vectors
        mass = np.bincount(self._user, weights=np.abs(weights), minlength=self.users)
        kappa = parameters.kappas[horizon]
        interest: NDArray[np.float32] = ((kappa * prior + sums) / (kappa + mass)[:, None]).astype(np.float32)
        return interest

    def live_counts(self, parameters: Parameters) -> NDArray[np.float32]:
        """Decayed numbers of users with a positive-gain event before each target's time (U, n)."""
        counted = self._events.select(event_gains(self._events, parameters) > 0)
        rows, times = counted.row, counted.time
        half_life = parameters.popularity_half_life_s
        fresh = counted_weights(counted, self.n, half_life)
        counts = np.zeros(self.n)
        answer = np.empty((self.users, self.n), dtype=np.float32)
        done, now = 0, float(times[0]) if len(times) else 0.0
        for user in np.argsort(self.target_time, kind="stable"):
            time = float(self.target_time[user])
            upto = int(np.searchsorted(times, time, side="left"))
            counts *= np.exp2(-max(time - now, 0.0) / half_life)
            if upto > done:
                ages = time - times[done:upto]
                np.add.at(counts, rows[done:upto], fresh[done:upto] * np.exp2(-ages / half_life))
                done = upto
            now = time
            answer[user] = counts
        return answer

    def neighbour_sums(self, neighbours: Neighbours, parameters: Parameters, items: int) -> NDArray[np.float32]:
        """How strongly the newest `items` liked items of each user speak for every item (U, n)."""
        liked = event_gains(self._own, parameters) > 0
        own = self._own.select(liked)
        history = liked_items(self._user[liked], own.row, own.time, self.users, self.n, items)
        sums: NDArray[np.float32] = (history @ neighbours.matrix()).toarray().astype(np.float32)
        return sums

    def scores(
        self,
        vectors: NDArray[np.float32],
        bias: NDArray[np.float32],
        prior: NDArray[np.float32],
        scoring_matrices: NDArray[np.float32],
        parameters: Parameters,
        neighbours: Neighbours | None = None,
        *,
        log_counts: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The served score of every item for every user (U, n), without the intercept; `neighbours` where the
        parameters have them. `log_counts` (U, n) are log1p of the live counts, where they are at hand.
        """
        query = sum(
            self.interest(vectors, parameters, prior, horizon) @ scoring_matrices[horizon]
            for horizon in range(parameters.horizons)
        )
        scores: NDArray[np.float32] = np.asarray(query, dtype=np.float32) @ vectors.T + bias
        if parameters.live_popularity_weight:
            log_counts = np.log1p(self.live_counts(parameters)) if log_counts is None else log_counts
            scores += np.float32(parameters.live_popularity_weight) * log_counts
        if parameters.neighbours is not None and neighbours is not None:
            weight, items = np.float32(parameters.neighbours.weight), parameters.neighbours.items
            scores += weight * self.neighbour_sums(neighbours, parameters, items)
        return scores

    def ranks(self, scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each target: how many unseen items score higher, and how many others score the same."""
        users = np.arange(self.users)
        own = scores[users, self.target_row]
        higher = (scores > own[:, None]).sum(axis=1)
        same = (scores == own[:, None]).sum(axis=1)
        # Seen items are taken out afterwards: cheaper than masking a copy of all scores.
        seen = self.seen_pairs()
        seen_scores = scores[seen[0], seen[1]]
        higher -= np.bincount(seen[0], weights=seen_scores > own[seen[0]], minlength=self.users).astype(np.int64)
        same -= np.bincount(seen[0], weights=seen_scores == own[seen[0]], minlength=self.users).astype(np.int64)
        return higher, same - 1

    def quality(self, scores: NDArray[np.float32]) -> Quality:
        """HR@10 and NDCG@10 of scores (U, n), ties at their expected rank."""
        higher, same = self.ranks(scores)
        hit = np.clip((10 - higher) / (same + 1), 0.0, 1.0)
        gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(10) + 2.0))])
        first, last = np.minimum(higher, 10), np.minimum(higher + same + 1, 10)
        ndcg = (gains[last] - gains[first]) / (same + 1)
        return Quality(self.users, float(hit.mean()), float(ndcg.mean()))

    def seen_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct (user, item) pairs of the histories; the target is never among them, even if seen
        before.
        """
        flat = np.unique(self._user * self.n + self._own.row)
        user, row = flat // self.n, flat % self.n
        other = row != self.target_row[user]
        return user[other], row[other]


def counted_weights(events: EventTable, n: int, half_life_s: float) -> NDArray[np.float64]:
    """What each positive event (E,) adds to the live count of its item at its own time.

    A user counts once per item, by their newest event: one that follows another of theirs after t seconds adds only
    what has decayed since, `1 - 2^(-t / half_life)`. Summed with decay that is one per user, whatever they repeat.
    """
    pairs = events.user * n + events.row
    order = np.argsort(pairs, kind="stable")  # by time within a pair, as the events are
    repeated = np.flatnonzero(pairs[order][1:] == pairs[order][:-1]) + 1
    weights = np.ones(len(events))
    gaps_s = events.time[order[repeated]] - events.time[order[repeated - 1]]
    weights[order[repeated]] = -np.expm1(-gaps_s * np.log(2.0) / half_life_s)
    return weights


def event_gains(events: EventTable, parameters: Parameters) -> NDArray[np.float64]:
    """The bounded gains g_e (E,) of events."""
    gains: list[Gain] = [parameters.gains[kind] for kind in EVENT_TYPES]
    weight = np.array([gain.weight for gain in gains])[events.kind]
    center = np.array([gain.center for gain in gains])[events.kind]
    bounded: NDArray[np.float64] = np.clip(weight * (events.value - center), -parameters.max_gain, parameters.max_gain)
    return bounded
