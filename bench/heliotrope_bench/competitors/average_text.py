"""Average-BERT: the mean of the text features of the history."""

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.competitors.competitor import Scores
from heliotrope_bench.holdout import Holdout

_CHUNK = 256


def average_text(holdout: Holdout, *, features: NDArray[np.float32], last: int, positives_only: bool) -> Scores:
    """The mean feature of the `last` items of the history (0: of all) times the feature of each item.

    `features` (items, D) are of unit length and centred on the catalogue, as the rebuild job makes them.
    """
    data = holdout.dataset
    means = np.zeros((len(holdout.targets), features.shape[1]), np.float32)
    for place, history in enumerate(holdout.histories()):
        kept = history[data.positive[history]] if positives_only else history
        if len(kept):
            means[place] = features[data.item[kept[-last:]]].mean(axis=0)
    for start in range(0, len(means), _CHUNK):
        yield from means[start : start + _CHUNK] @ features.T
