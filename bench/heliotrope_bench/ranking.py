"""Ranking metrics with fair ties, and their bootstrap intervals. One code for every model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUT_OFF = 10
BOOTSTRAP_SAMPLES = 1_000


@dataclass(frozen=True)
class TargetRank:
    """Where a target stands: `above` items score higher, and `tied` items (itself included) score the same.

    `above` None: the target is not in the list that was read, so it counts nothing.
    """

    above: int | None
    tied: int = 1


def rank_in_scores(scores: NDArray[np.floating], target: int, seen: NDArray[np.int64]) -> TargetRank:
    """The rank of item `target` among all `scores` (items,) but those of `seen` items."""
    candidates = np.ones(len(scores), bool)
    candidates[seen] = False
    candidates[target] = True
    own = scores[target]
    return TargetRank(
        int(np.count_nonzero((scores > own) & candidates)), int(np.count_nonzero((scores == own) & candidates))
    )


def rank_in_list(item_ids: list[str], scores: list[float], target: str) -> TargetRank:
    """The rank of a target in a list sorted by falling score; equal scores are ties whatever their order."""
    if target not in item_ids:
        return TargetRank(None)
    own = scores[item_ids.index(target)]
    return TargetRank(sum(score > own for score in scores), sum(score == own for score in scores))


def metrics(ranks: list[TargetRank]) -> dict[str, float]:
    """HR@10, NDCG@10 and MRR over the targets, with 95 % intervals.

    A tied target is at each of the ranks `above + 1 .. above + tied` with equal chance, and its metrics are the means
    over them. With one relevant item, HR is rank <= 10, NDCG is 1 / log2(1 + rank) up to rank 10, and MRR 1 / rank.
    The interval is the percentile bootstrap over targets.
    """
    values = np.array([_expected(rank) for rank in ranks]).reshape(-1, 3)
    generator = np.random.default_rng(0)
    weights = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=BOOTSTRAP_SAMPLES).astype(
        np.float64
    )
    resampled = weights @ values / len(values)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    row: dict[str, float] = {}
    for column, name in enumerate((f"hr@{CUT_OFF}", f"ndcg@{CUT_OFF}", "mrr")):
        row[name] = float(values[:, column].mean())
        row[f"{name}_low"] = float(low[column])
        row[f"{name}_high"] = float(high[column])
    row["n_users"] = len(values)
    return row


def _expected(rank: TargetRank) -> tuple[float, float, float]:
    if rank.above is None:
        return 0.0, 0.0, 0.0
    places = np.arange(rank.above + 1, rank.above + rank.tied + 1)
    hit = places <= CUT_OFF
    return float(hit.mean()), float((hit / np.log2(places + 1.0)).mean()), float((1.0 / places).mean())
