"""Item-kNN: the cosine between the users of two items."""

import numpy as np
import scipy.sparse

from heliotrope_bench.competitors.competitor import Scores
from heliotrope_bench.competitors.interactions import interactions, taste
from heliotrope_bench.holdout import Holdout

_CHUNK = 256


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
    # (items, items): row j holds the items near to j.
    towards = nearest.T.tocsr()
    histories = taste(holdout, positives_only=False)
    for start in range(0, histories.shape[0], _CHUNK):
        yield from (histories[start : start + _CHUNK] @ towards).toarray()


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
