"""The vectorised replay against a scorer that walks through the events one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heliotrope_indexer.events import EventTable
from heliotrope_indexer.parameters import EVENT_TYPES, Gain, Parameters
from heliotrope_indexer.replay import Replay, hold_out
from tests.indexer.conftest import some_events

N = 30
PARAMETERS = Parameters(
    half_lives_s=(7_200.0, 400_000.0),
    kappas=(0.5, 2.0),
    gains={**Parameters(half_lives_s=(1.0,), kappas=(1.0,)).gains, "rating": Gain(weight=0.4, center=2.5)},
    live_popularity_weight=0.3,
    popularity_half_life_s=500_000.0,
)


def naive_scores(
    events: EventTable,
    user: int,
    at: float,
    vectors: np.ndarray,
    bias: np.ndarray,
    prior: np.ndarray,
    matrices: np.ndarray,
) -> list[float]:
    gain = [PARAMETERS.gain(EVENT_TYPES[kind], value) for kind, value in zip(events.kind, events.value, strict=True)]
    query = np.zeros(vectors.shape[1])
    for half_life, kappa, matrix in zip(PARAMETERS.half_lives_s, PARAMETERS.kappas, matrices, strict=True):
        interest, mass = kappa * prior, kappa
        for event in range(len(events)):
            if events.user[event] == user:
                weight = gain[event] * 2 ** (-(at - events.time[event]) / half_life)
                interest = interest + weight * vectors[events.row[event]]
                mass += abs(weight)
        query += interest / mass @ matrix
    scores = []
    for item in range(N):
        newest = {
            int(events.user[event]): float(events.time[event])
            for event in range(len(events))
            if events.row[event] == item and gain[event] > 0 and events.time[event] < at
        }
        count = sum(2 ** (-(at - time) / PARAMETERS.popularity_half_life_s) for time in newest.values())
        scores.append(float(query @ vectors[item] + bias[item] + 0.3 * math.log1p(count)))
    return scores


def test_the_replay_scores_as_the_formula_says() -> None:
    rng = np.random.default_rng(7)
    vectors, bias, prior = rng.normal(size=(N, 5)), rng.normal(size=N), rng.normal(size=5)
    matrices = rng.normal(size=(2, 5, 5))
    remaining, targets = hold_out(some_events(), 4.0)
    assert len(targets) > 30
    replay = Replay(remaining, targets, N)
    scores = replay.scores(*(array.astype(np.float32) for array in (vectors, bias, prior, matrices)), PARAMETERS)
    for row in range(0, len(targets), 3):
        expected = naive_scores(remaining, targets.user[row], targets.time[row], vectors, bias, prior, matrices)
        np.testing.assert_allclose(scores[row], expected, rtol=2e-4, atol=2e-4)
        seen = {int(item) for item in remaining.row[remaining.user == targets.user[row]]} - {int(targets.row[row])}
        own = scores[row, targets.row[row]]
        higher = sum(scores[row, item] > own for item in range(N) if item not in seen)
        assert replay.ranks(scores)[0][row] == higher


def test_a_scorer_that_knows_nothing_scores_chance() -> None:
    remaining, targets = hold_out(some_events(items=100, count=1_500), 4.0)
    replay = Replay(remaining, targets, 1_000)
    quality = replay.quality(np.zeros((replay.users, replay.n), dtype=np.float32))
    choices = [
        1_000 - len(set(remaining.row[remaining.user == user]) - {row})
        for user, row in zip(targets.user, targets.row, strict=True)
    ]
    assert quality.hit_rate_at_10 == pytest.approx(np.mean([10 / count for count in choices]))
    best = sum(1 / math.log2(rank + 2) for rank in range(10))
    assert quality.ndcg_at_10 == pytest.approx(np.mean([best / count for count in choices]))


def test_a_perfect_scorer_scores_one() -> None:
    remaining, targets = hold_out(some_events(), 4.0)
    replay = Replay(remaining, targets, N)
    scores = np.zeros((replay.users, N), dtype=np.float32)
    scores[np.arange(replay.users), targets.row] = 1.0
    quality = replay.quality(scores)
    assert (quality.hit_rate_at_10, quality.ndcg_at_10) == (1.0, 1.0)


def test_hold_out_takes_the_last_positive_and_what_follows() -> None:
    rating, click = EVENT_TYPES.index("rating"), EVENT_TYPES.index("click")
    events = EventTable(
        user=np.array([0, 0, 0, 1, 2, 1, 2]),
        row=np.arange(7),
        kind=np.array([rating, rating, rating, rating, click, rating, rating], dtype=np.int8),
        value=np.array([5.0, 4.0, 2.0, 1.0, 1.0, 1.0, 3.0]),
        time=np.arange(7.0),
        user_ids=["a", "b", "c"],
    )
    remaining, targets = hold_out(events, 4.0)
    # User 0: row 1 is the target, row 2 comes later. User 1 likes nothing. User 2's only positive has no history.
    assert targets.row.tolist() == [1]
    assert remaining.row.tolist() == [0, 3, 5]
