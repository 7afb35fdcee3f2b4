"""EASE: a linear item-to-item model with a zero diagonal, in closed form (Steck, 2019).

With P = (X^T X + lambda I)^-1 the weights are B = I - P / diag(P), and a history x scores x B.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from heliotrope_bench.competitors.competitor import Scores
from heliotrope_bench.competitors.interactions import interactions, taste
from heliotrope_bench.holdout import Holdout

MAX_ITEMS = 5_000
"""Where both users and items are more than this, only the items with most events take part; the others score 0.

Inverting costs the cube of the smaller of the two: 5,000 take about 5 seconds on one core, 10,000 take 40.
"""

_CHUNK = 256

Matrix = NDArray[np.float32]


def ease(holdout: Holdout, *, ridge: float, positives_only: bool) -> Scores:
    """Scores of EASE with the ridge `lambda`, on the history of each target."""
    seen = interactions(holdout, positives_only=positives_only, weight=None)
    histories = taste(holdout, positives_only=positives_only)
    items = np.arange(seen.shape[1])
    several = np.asarray(seen.sum(axis=1)).ravel() > 1
    if min(int(several.sum()), len(items)) > MAX_ITEMS:
        events = np.asarray(seen.sum(axis=0)).ravel()
        items = np.sort(np.argsort(-events, kind="stable")[:MAX_ITEMS])
    apply, diagonal = _inverse(seen[:, items], ridge)
    for start in range(0, histories.shape[0], _CHUNK):
        batch = histories[start : start + _CHUNK][:, items]
        scores = np.zeros((batch.shape[0], seen.shape[1]), np.float32)
        scores[:, items] = batch.toarray() - apply(batch) / diagonal
        yield from scores


def _inverse(seen: scipy.sparse.csr_matrix, ridge: float) -> tuple[Callable[[scipy.sparse.csr_matrix], Matrix], Matrix]:
    """`x -> x P` for sparse rows x, and the diagonal of P."""
    users, items = seen.shape
    if users >= items:
        gram = (seen.T @ seen).toarray()
        gram[np.diag_indices(items)] += np.float32(ridge)
        inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False, assume_a="pos").astype(np.float32)
        return lambda rows: rows @ inverse, np.ascontiguousarray(np.diag(inverse))
    # With fewer users than items, by the Woodbury identity: P = (I - X^T (X X^T + lambda I)^-1 X) / lambda.
    gram = (seen @ seen.T).toarray()
    gram[np.diag_indices(users)] += np.float32(ridge)
    half = np.asarray(seen.T @ scipy.linalg.inv(gram, check_finite=False, assume_a="pos").astype(np.float32))
    diagonal = (1 - np.asarray(seen.T.multiply(half).sum(axis=1)).ravel()) / np.float32(ridge)

    def apply(rows: scipy.sparse.csr_matrix) -> Matrix:
        product: Matrix = (rows.toarray() - (rows @ half) @ seen) / np.float32(ridge)
        return product

    return apply, diagonal.astype(np.float32)
