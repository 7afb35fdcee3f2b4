"""The models that the served system is compared with, each tuned on the validation cut.

A competitor scores the whole catalogue for each target of a holdout, knowing the train events (batch models), or those
before the target (causal ones).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from heliotrope_bench.holdout import Holdout
from heliotrope_bench.ranking import CUT_OFF, TargetRank, metrics, rank_in_scores

Scores = Iterator[NDArray[np.floating]]
DAY_S = 86_400.0


@dataclass(frozen=True)
class Competitor:
    """A scorer with a grid of settings to choose from. `score` yields (items,) for each target, in order."""

    name: str
    score: Callable[..., Scores]
    grid: tuple[dict[str, Any], ...]


def evaluate(competitor: Competitor, holdout: Holdout, validation: Holdout) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics on the targets with the settings that did best (NDCG@10) on validation, and those settings."""
    settings = (
        max(
            competitor.grid,
            key=lambda choice: metrics(ranks(competitor.score(validation, **choice), validation))[f"ndcg@{CUT_OFF}"],
        )
        if len(competitor.grid) > 1
        else competitor.grid[0]
    )
    return metrics(ranks(competitor.score(holdout, **settings), holdout)), settings


def ranks(scores: Scores, holdout: Holdout) -> list[TargetRank]:
    """The rank of each target under a scorer, seen items left out."""
    item = holdout.dataset.item
    return [
        rank_in_scores(row, int(item[target]), item[history])
        for row, target, history in zip(scores, holdout.targets, holdout.histories(), strict=True)
    ]


def chance(holdout: Holdout) -> Scores:
    """All-zero scores: what knowing nothing is worth."""
    for _ in holdout.targets:
        yield np.zeros(len(holdout.dataset.items))


def popularity(holdout: Holdout, *, positives_only: bool) -> Scores:
    """How many train events each item has."""
    data = holdout.dataset
    train = holdout.train[data.positive[holdout.train]] if positives_only else holdout.train
    counts = np.bincount(data.item[train], minlength=len(data.items)).astype(np.float64)
    for _ in holdout.targets:
        yield counts


def decayed_popularity(holdout: Holdout, *, half_life_s: float, positives_only: bool) -> Scores:
    """The decayed number of events of each item before the target: causal, unlike `popularity`.

    Counts are kept relative to a landmark that moves along (forward decay), so one event costs O(1).
    """
    data = holdout.dataset
    counts = np.zeros(len(data.items))
    landmark = float(data.time[0])
    train, next_event = holdout.train, 0
    for target in holdout.targets:
        while next_event < len(train) and train[next_event] < target:
            event = train[next_event]
            next_event += 1
            if positives_only and not data.positive[event]:
                continue
            if data.time[event] - landmark > 500 * half_life_s:
                counts *= 2.0 ** max(-1_000.0, -(float(data.time[event]) - landmark) / half_life_s)
                landmark = float(data.time[event])
            counts[data.item[event]] += 2.0 ** ((data.time[event] - landmark) / half_life_s)
        yield counts


def item_knn(holdout: Holdout, *, neighbours: int, shrink: float, positives_only: bool) -> Scores:
    """Sum over the history of the cosine to each item, over the `neighbours` nearest items of each.

    cosine(i, j) = n_ij / (sqrt(n_i n_j) + shrink) over users, from one batch of train events.
    """
    matrix = interactions(holdout, positives_only=positives_only, weight=None)
    together = (matrix.T @ matrix).tocsr()
    norm = np.sqrt(together.diagonal())
    together.setdiag(0)
    together.eliminate_zeros()
    rows = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    together.data /= norm[rows] * norm[together.indices] + shrink
    nearest = _keep_largest(together, neighbours)
    for history in holdout.histories():
        taste = np.zeros(len(norm), np.float32)
        taste[holdout.dataset.item[history]] = 1.0
        yield nearest @ taste


def als(holdout: Holdout, *, factors: int, regularization: float, alpha: float, positives_only: bool) -> Scores:
    """Implicit ALS (Hu, Koren, Volinsky 2008; library `implicit`), user factors refitted from the history."""
    from implicit.cpu.als import AlternatingLeastSquares

    matrix = interactions(holdout, positives_only=positives_only, weight=alpha)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=factors, regularization=regularization, iterations=15, random_state=0)
        model.fit(matrix, show_progress=False)
        users = holdout.dataset.user[holdout.targets]
        fitted = model.recalculate_user(users, matrix[users])
        for vector in fitted:
            yield model.item_factors @ vector


def interactions(holdout: Holdout, *, positives_only: bool, weight: float | None) -> scipy.sparse.csr_matrix:
    """(users, items) float32: 1 for each pair in the train events, or `weight` * (1 + value / largest value) / 2."""
    data = holdout.dataset
    train = holdout.train[data.positive[holdout.train]] if positives_only else holdout.train
    pairs = data.user[train] * len(data.items) + data.item[train]
    # The last rating of a pair counts: np.unique keeps the first, so look from the end.
    _, first = np.unique(pairs[::-1], return_index=True)
    kept = train[::-1][first]
    values = np.ones(len(kept), np.float32)
    if weight is not None:
        values = (weight * (1 + data.value[kept] / data.value.max()) / 2).astype(np.float32)
    shape = (len(data.user_ids), len(data.items))
    return scipy.sparse.csr_matrix((values, (data.user[kept], data.item[kept])), shape)


def _keep_largest(matrix: scipy.sparse.csr_matrix, count: int) -> scipy.sparse.csr_matrix:
    """The `count` largest entries of each column-to-be: entry (i, j) stays when i is among the nearest of j."""
    kept = np.zeros(matrix.nnz, bool)
    for row in range(matrix.shape[0]):
        start, end = matrix.indptr[row], matrix.indptr[row + 1]
        if end - start <= count:
            kept[start:end] = True
        else:
            kept[start + np.argpartition(matrix.data[start:end], -count)[-count:]] = True
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    shape = matrix.shape
    return scipy.sparse.csr_matrix((matrix.data[kept], (matrix.indices[kept], rows[kept])), shape)


COMPETITORS = (
    Competitor("chance", chance, ({},)),
    Competitor("popularity", popularity, ({"positives_only": False}, {"positives_only": True})),
    Competitor(
        "causal decayed popularity",
        decayed_popularity,
        tuple(
            {"half_life_s": days * DAY_S, "positives_only": positives_only}
            for days in (0.25, 1, 3, 7, 14, 30, 90, 365, 3_650)
            for positives_only in (False, True)
        ),
    ),
    Competitor(
        "item-kNN (cosine)",
        item_knn,
        tuple(
            {"neighbours": neighbours, "shrink": shrink, "positives_only": positives_only}
            for positives_only in (False, True)
            for neighbours in (20, 100, 500)
            for shrink in (0.0, 10.0)
        ),
    ),
    Competitor(
        "ALS",
        als,
        tuple(
            {"factors": factors, "regularization": regularization, "alpha": alpha, "positives_only": positives_only}
            for positives_only in (False, True)
            for factors in (32, 64, 128)
            for regularization in (3.0, 30.0)
            for alpha in (1.0, 5.0, 20.0)
        ),
    ),
)
