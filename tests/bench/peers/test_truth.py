"""Recall against a naive computation."""

import numpy as np
import pytest

from heliotrope_bench.peers.heliotrope_server import Interests
from heliotrope_bench.peers.peer import Question, unseen
from heliotrope_bench.peers.truth import our_scores, peer_scores, query_vectors, recall
from heliotrope_bench.recall import SnapshotArrays


@pytest.fixture
def arrays() -> SnapshotArrays:
    generator = np.random.default_rng(0)
    return SnapshotArrays(
        [f"i{row}" for row in range(30)],
        generator.normal(size=(30, 4)).astype(np.float32),
        generator.normal(size=30).astype(np.float32),
        generator.normal(size=(2, 4, 4)).astype(np.float32),
        {"live_popularity_weight": 0.3},
        {},
    )


def test_the_question_to_a_peer_is_our_score_without_the_live_term(arrays):
    generator = np.random.default_rng(1)
    interests = generator.normal(size=(3, 2, 4))
    rows = np.hstack([arrays.vectors, arrays.bias[:, None]])
    rows = np.vstack([rows, generator.normal(size=(2, 5))]).astype(np.float32)
    questions = [Question("u", vector, ()) for vector in query_vectors(arrays, interests)]
    counts = generator.integers(0, 5, size=30).astype(float)
    ours = list(our_scores(arrays, rows, Interests(interests, counts)))
    theirs = list(peer_scores(rows, questions))
    for user in range(3):
        for row in range(32):
            taste = sum(interests[user, h] @ arrays.scoring_matrices[h] @ rows[row, :4] for h in range(2))
            live = 0.3 * np.log1p(counts[row]) if row < 30 else 0.0
            assert theirs[user][row] == pytest.approx(taste + rows[row, 4], rel=1e-4, abs=1e-4)
            assert ours[user][row] == pytest.approx(theirs[user][row] + live, rel=1e-4, abs=1e-4)


def test_recall_leaves_out_the_seen_and_tells_new_items_apart():
    scores = np.arange(30, dtype=float)
    best_unseen = [29, 27, 26, 25, 24, 23, 22, 21, 20, 19]
    found = recall([scores, scores], [best_unseen, [*best_unseen[1:], 0]], [{28}, {28}], base=29)
    assert found.overall == pytest.approx(19 / 20)
    assert found.new_items == pytest.approx(1 / 2)
    assert recall([scores], [[28, *best_unseen[:9]]], [{28}], base=30) == (pytest.approx(0.9), None)


def test_unseen_keeps_the_order_and_the_first_ten():
    found = unseen(list(range(20)), [float(-row) for row in range(20)], frozenset({0, 3}))
    assert found.rows == [1, 2, *range(4, 12)]
    assert found.scores == [float(-row) for row in found.rows]
