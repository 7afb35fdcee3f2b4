"""The train events as one sparse matrix, and histories as another."""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from heliotrope_bench.holdout import Holdout


def interactions(holdout: Holdout, *, positives_only: bool, weight: float | None) -> scipy.sparse.csr_matrix:
    """(users, items) float32: 1 for each pair in the train events, or `weight` * (1 + strength) / 2."""
    data = holdout.dataset
    train = holdout.train[data.positive[holdout.train]] if positives_only else holdout.train
    return _matrix(holdout, data.user[train], train, len(data.user_ids), weight)


def taste(holdout: Holdout, *, positives_only: bool, weight: float | None = None) -> scipy.sparse.csr_matrix:
    """(targets, items) float32: the recorded history of each target, in the form of `interactions`."""
    data = holdout.dataset
    histories = holdout.histories()
    events = np.concatenate([*histories, np.empty(0, np.int64)])
    row = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    if positives_only:
        row, events = row[data.positive[events]], events[data.positive[events]]
    return _matrix(holdout, row, events, len(histories), weight)


def _matrix(
    holdout: Holdout, row: NDArray[np.int64], events: NDArray[np.int64], rows: int, weight: float | None
) -> scipy.sparse.csr_matrix:
    data = holdout.dataset
    pairs = row * len(data.items) + data.item[events]
    # The last event of a pair counts: np.unique keeps the first, so look from the end.
    _, first = np.unique(pairs[::-1], return_index=True)
    row, events = row[::-1][first], events[::-1][first]
    values = np.ones(len(events), np.float32)
    if weight is not None:
        values = (weight * (1 + data.strength[events]) / 2).astype(np.float32)
    return scipy.sparse.csr_matrix((values, (row, data.item[events])), (rows, len(data.items)))
