"""Ranking metrics with fair ties: `ir-measures` says what each place is worth, a tie is the mean of its places."""

from dataclasses import dataclass
from functools import cache

import ir_measures
import numpy as np
from ir_measures import RR, Qrel, R, ScoredDoc, Success, nDCG
from numpy.typing import NDArray

from heliotrope_bench.interval import Bootstrap

CUT_OFF = 10
DEEPEST = 1_000
"""Places that count; the reciprocal rank behind them is below 0.001 and taken as 0, for every model."""

MEASURES = {
    f"hr@{CUT_OFF}": Success @ CUT_OFF,
    f"ndcg@{CUT_OFF}": nDCG @ CUT_OFF,
    "mrr": RR,
    "recall@50": R @ 50,
    "recall@100": R @ 100,
}
"""With one relevant item a target, the hit rate is the recall."""


@dataclass(frozen=True)
class TargetRank:
    """Where a target stands: `above` items score higher, and `tied` items (itself included) score the same.

    `above` None: the target is not in the list that was read, so it counts nothing.
    """

    above: int | None
    tied: int = 1


def rank_in_scores(scores: NDArray[np.floating], target: int, seen: NDArray[np.int64]) -> TargetRank:
    """The rank of item `target` among all `scores` (items,) but those of `seen` items."""
    own = scores[target]
    # A user may have seen an item twice.
    others = scores[np.unique(seen[seen != target])]
    return TargetRank(
        int(np.count_nonzero(scores > own) - np.count_nonzero(others > own)),
        int(np.count_nonzero(scores == own) - np.count_nonzero(others == own)),
    )


def rank_in_list(item_ids: list[str], scores: list[float], target: str) -> TargetRank:
    """The rank of a target in a list sorted by falling score; equal scores are ties whatever their order."""
    if target not in item_ids:
        return TargetRank(None)
    own = scores[item_ids.index(target)]
    return TargetRank(sum(score > own for score in scores), sum(score == own for score in scores))


def place_in_list(item_ids: list[str], target: str) -> TargetRank:
    """The place of a target in a list that is in another order than that of the scores."""
    return TargetRank(item_ids.index(target), 1) if target in item_ids else TargetRank(None)


def values(ranks: list[TargetRank]) -> NDArray[np.float64]:
    """(targets, measures): the expected value of each of MEASURES.

    A tied target is at each of the places `above + 1 .. above + tied` with equal chance.
    """
    above = np.array([DEEPEST if rank.above is None else rank.above for rank in ranks], np.int64)
    tied = np.array([rank.tied for rank in ranks], np.int64)
    sums = _cumulated_values()
    first, last = np.minimum(above, DEEPEST), np.minimum(above + tied, DEEPEST)
    expected: NDArray[np.float64] = (sums[last] - sums[first]) / tied[:, None]
    return expected


def metrics(ranks: list[TargetRank], users: NDArray[np.int64] | None = None) -> dict[str, float]:
    """The mean of each of MEASURES over the targets, with 95 % intervals.

    `users` (targets,) says whose each target is, where a user has several: the bootstrap draws users.
    """
    table = values(ranks)
    low, high = Bootstrap(np.arange(len(ranks)) if users is None else users).interval(table)
    row: dict[str, float] = {}
    for column, name in enumerate(MEASURES):
        row[name] = float(table[:, column].mean()) if len(table) else 0.0
        row[f"{name}_low"] = float(low[column])
        row[f"{name}_high"] = float(high[column])
    row["targets"] = len(ranks)
    return row


@cache
def _cumulated_values() -> NDArray[np.float64]:
    """(DEEPEST + 1, measures): sums of the values of the first places, by the library."""
    relevant = [Qrel(str(place), "target", 1) for place in range(1, DEEPEST + 1)]
    lists = [
        ScoredDoc(str(place), "target" if rank == place else f"other {rank}", float(-rank))
        for place in range(1, DEEPEST + 1)
        for rank in range(1, place + 1)
    ]
    names = {str(measure): column for column, measure in enumerate(MEASURES.values())}
    table = np.zeros((DEEPEST + 1, len(MEASURES)))
    for result in ir_measures.iter_calc(list(MEASURES.values()), relevant, lists):
        table[int(result.query_id), names[str(result.measure)]] = result.value
    return np.cumsum(table, axis=0)
