"""recall@10 of what was answered, against exact scoring of all rows that were there."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.heliotrope_server import Interests
from heliotrope_bench.peers.peer import COUNT, Question
from heliotrope_bench.recall import SnapshotArrays, hits


class Recall(NamedTuple):
    """The share of the exact best COUNT that was answered; and of those among them that had just arrived, None when
    there were none."""

    overall: float
    new_items: float | None


def query_vectors(arrays: SnapshotArrays, interests: NDArray[np.float64]) -> NDArray[np.float32]:
    """[sum_h v_h A_h ; 1] (users, d + 1) of interest vectors (users, H, d): what a peer is asked with."""
    queries = np.einsum("uhd,hde->ue", interests, arrays.scoring_matrices.astype(np.float64))
    return np.hstack([queries, np.ones((len(queries), 1))]).astype(np.float32)


def peer_scores(rows: NDArray[np.float32], questions: Sequence[Question]) -> Iterable[NDArray[Any]]:
    """Exact scores (n,) of rows [x ; b] (n, D) for each question."""
    return (rows @ question.vector for question in questions)


def our_scores(
    arrays: SnapshotArrays, rows: NDArray[np.float32], interests: Interests
) -> Iterable[NDArray[np.float64]]:
    """Exact scores (n,) with the live term, for each user; rows behind the snapshot's have no live count."""
    queries = query_vectors(arrays, interests.vectors)
    live = arrays.parameters["live_popularity_weight"] * np.log1p(interests.live_counts)
    live = np.pad(live, (0, len(rows) - len(live)))
    return (rows @ query + live for query in queries)


def recall(
    scores: Iterable[NDArray[Any]], answers: Sequence[Sequence[int]], seen: Sequence[Iterable[int]], base: int
) -> Recall:
    """`seen` are the rows that each user must not get; rows from `base` on are new."""
    found, new_found, new_wanted = 0, 0, 0
    for row_scores, rows, left_out in zip(scores, answers, seen, strict=True):
        exact = np.array(row_scores)
        exact[list(left_out)] = -np.inf
        found += hits(exact, rows, COUNT)
        best = np.argpartition(exact, -COUNT)[-COUNT:]
        new = set(best[best >= base].tolist())
        new_wanted += len(new)
        new_found += len(new & set(rows))
    return Recall(found / (COUNT * len(answers)), new_found / new_wanted if new_wanted else None)
