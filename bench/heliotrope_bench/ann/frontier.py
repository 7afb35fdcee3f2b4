"""Recall that knows ties, and the frontier of recall and rate that a contender's settings reach."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-5
"""Of a score: libraries add up in another order. Scores here are about 1."""


class Mark(NamedTuple):
    """What one setting reached."""

    recall: float
    rate: float


def recall(scores: NDArray[np.float32], found: NDArray[np.int64], k: int) -> float:
    """Mean recall@k of rows found (m, k), -1 for none, by the exact scores (m, n) of all rows.

    Counted by score: a row is right when it scores as much as the k-th best. Texts that repeat tie, and any of them
    is as good as another. A row that is named twice counts once.
    """
    cut_off = np.partition(scores, -k, axis=1)[:, -k]
    right = np.take_along_axis(scores, np.maximum(found, 0), axis=1) >= cut_off[:, None] - TOLERANCE
    right &= found >= 0
    order = np.argsort(found, axis=1, kind="stable")
    ordered = np.take_along_axis(found, order, axis=1)
    again = np.zeros_like(right)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    right &= ~np.take_along_axis(again, np.argsort(order, axis=1, kind="stable"), axis=1)
    return float(np.minimum(right.sum(axis=1), k).mean() / k)


def frontier(marks: Sequence[Mark]) -> list[Mark]:
    """The marks that no other beats in both, by rising recall and so by falling rate."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (-mark.recall, -mark.rate)):
        if not best or mark.rate > best[-1].rate:
            best.append(mark)
    return best[::-1]


def rate_at(marks: Sequence[Mark], wanted: float) -> float | None:
    """The rate at a recall of at least `wanted`; None where no setting reaches it.

    Between two neighbours of the frontier log rate is linear in recall; below the first it is the first's rate.
    """
    edge = frontier(marks)
    if not edge or wanted > edge[-1].recall:
        return None
    return float(np.exp(np.interp(wanted, [mark.recall for mark in edge], [np.log(mark.rate) for mark in edge])))
