"""Matrix factorisation by the library `implicit`: ALS and BPR."""

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from heliotrope_bench.competitors.competitor import Scores
from heliotrope_bench.competitors.interactions import interactions, taste
from heliotrope_bench.holdout import Holdout

_CHUNK = 256


def als(holdout: Holdout, *, factors: int, regularization: float, alpha: float, positives_only: bool) -> Scores:
    """Implicit ALS (Hu, Koren, Volinsky 2008), user factors refitted from the history."""
    from implicit.cpu.als import AlternatingLeastSquares

    matrix = interactions(holdout, positives_only=positives_only, weight=alpha)
    histories = taste(holdout, positives_only=positives_only, weight=alpha)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=factors, regularization=regularization, iterations=15, random_state=0)
        model.fit(matrix, show_progress=False)
        users = model.recalculate_user(np.arange(histories.shape[0]), histories)
    yield from _products(users, model.item_factors)


def bpr(
    holdout: Holdout,
    *,
    factors: int,
    learning_rate: float,
    regularization: float,
    iterations: int,
    positives_only: bool,
) -> Scores:
    """Bayesian personalised ranking (Rendle et al., 2009); a user who was not trained on gets the mean user."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    matrix = interactions(holdout, positives_only=positives_only, weight=None)
    model = BayesianPersonalizedRanking(
        factors=factors,
        learning_rate=learning_rate,
        regularization=regularization,
        iterations=iterations,
        random_state=0,
        # More threads write over each other, and no run is like another.
        num_threads=1,
    )
    model.fit(matrix, show_progress=False)
    trained = np.diff(matrix.indptr) > 0
    users = model.user_factors[holdout.users]
    if trained.any():
        users[~trained[holdout.users]] = model.user_factors[trained].mean(axis=0)
    yield from _products(users, model.item_factors)


def _products(users: Any, items: Any) -> Scores:
    for start in range(0, len(users), _CHUNK):
        yield from users[start : start + _CHUNK] @ items.T
