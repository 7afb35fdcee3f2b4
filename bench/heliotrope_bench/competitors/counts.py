"""What needs no taste: chance, and how often each item was used."""

import numpy as np

from heliotrope_bench.competitors.competitor import Scores
from heliotrope_bench.holdout import Holdout


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
    recorded, next_event = holdout.replayed, 0
    for target in holdout.targets:
        while next_event < len(recorded) and recorded[next_event] < target:
            event = recorded[next_event]
            next_event += 1
            if positives_only and not data.positive[event]:
                continue
            if data.time[event] - landmark > 500 * half_life_s:
                counts *= 2.0 ** max(-1_000.0, -(float(data.time[event]) - landmark) / half_life_s)
                landmark = float(data.time[event])
            counts[data.item[event]] += 2.0 ** ((data.time[event] - landmark) / half_life_s)
        yield counts
