"""What a model's lists are like beyond hits: how much of the catalogue, how known, how alike."""

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.holdout import Holdout


def list_figures(
    top: NDArray[np.int64], holdout: Holdout, features: NDArray[np.float32] | None
) -> dict[str, float | None]:
    """Figures of the lists `top` (targets, 10) of item rows, -1 where a list is shorter.

    - coverage: the share of the catalogue that stands in at least one list;
    - novelty: the mean of -log2 of the share of train users who have the item (Vargas and Castells, 2011; one user is
      added to both counts);
    - diversity: the mean over lists of 1 - cosine over all pairs of their items, by the text features (items, D);
    - average popularity: the mean number of train users of a listed item: the bias towards what is popular.
    """
    data = holdout.dataset
    pairs = np.unique(data.user[holdout.train] * len(data.items) + data.item[holdout.train])
    users_of = np.bincount(pairs % len(data.items), minlength=len(data.items))
    users = len(np.unique(data.user[holdout.train]))
    listed = top[top >= 0]
    if not len(listed):
        return {"coverage": 0.0, "novelty": None, "diversity": None, "average_popularity": None}
    return {
        "coverage": len(np.unique(listed)) / len(data.items),
        "novelty": float(-np.log2((users_of[listed] + 1) / (users + 1)).mean()),
        "diversity": None if features is None else _diversity(top, features),
        "average_popularity": float(users_of[listed].mean()),
    }


def _diversity(top: NDArray[np.int64], features: NDArray[np.float32]) -> float | None:
    distances = []
    for row in top:
        vectors = features[row[row >= 0]]
        count = len(vectors)
        if count > 1:
            # The sum over all pairs is the squared length of the sum, less the diagonal.
            total = float(np.square(vectors.sum(axis=0)).sum() - np.square(vectors).sum())
            distances.append(1.0 - total / (count * (count - 1)))
    return float(np.mean(distances)) if distances else None
