"""The models that the served system is compared with, each tuned on the validation part with the same budget.

competitor.py      what a competitor is, tuning and measuring
interactions.py    events as sparse matrices
counts.py          chance, popularity, causal decayed popularity
item_knn.py        cosine neighbours
ease.py            EASE
factors.py         ALS and BPR
average_text.py    average-BERT
"""

from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.competitors.average_text import average_text
from heliotrope_bench.competitors.competitor import Competitor, Outcome, drawn_settings, evaluate, tune
from heliotrope_bench.competitors.counts import chance, decayed_popularity, popularity
from heliotrope_bench.competitors.ease import ease
from heliotrope_bench.competitors.factors import als, bpr
from heliotrope_bench.competitors.item_knn import item_knn

__all__ = ["NAMES", "Competitor", "Outcome", "competitors", "evaluate", "tune"]

DAY_S = 86_400.0
BOTH = (False, True)


def competitors(features: NDArray[np.float32] | None) -> dict[str, Competitor]:
    """All of them by name; without text features (items, D) all but average-BERT, without torch all but SASRec."""
    found = [
        Competitor("chance", chance, ({},)),
        Competitor("popularity", popularity, tuple({"positives_only": choice} for choice in BOTH)),
        Competitor(
            "decayed-popularity",
            decayed_popularity,
            # Twice the budget of the others: the half-life is all that it has.
            tuple(
                {"half_life_s": days * DAY_S, "positives_only": choice}
                for days in (0.5, 1, 3, 7, 14, 30, 90, 365)
                for choice in BOTH
            ),
        ),
        Competitor(
            "item-knn",
            item_knn,
            drawn_settings(0, neighbours=(20, 50, 100, 500), shrink=(0.0, 10.0, 50.0), positives_only=BOTH),
        ),
        Competitor(
            "ease",
            ease,
            tuple(
                {"ridge": ridge, "positives_only": choice} for ridge in (10.0, 40.0, 120.0, 400.0) for choice in BOTH
            ),
        ),
        Competitor(
            "als",
            als,
            drawn_settings(
                0, factors=(32, 64, 128), regularization=(3.0, 30.0), alpha=(1.0, 5.0, 20.0), positives_only=BOTH
            ),
        ),
        Competitor(
            "bpr",
            bpr,
            drawn_settings(
                0,
                factors=(32, 64, 128),
                learning_rate=(0.003, 0.01, 0.03),
                regularization=(0.001, 0.01, 0.1),
                iterations=(10, 30, 100),
                positives_only=BOTH,
            ),
        ),
    ]
    if find_spec("torch"):
        from heliotrope_bench.competitors.sasrec import sasrec, tune_sasrec

        grid = drawn_settings(0, blocks=(1, 2), dropout=(0.2, 0.5), positives_only=BOTH)
        found.append(Competitor("sasrec", sasrec, grid, tuner=tune_sasrec))
    if features is not None:
        found.append(
            Competitor(
                "average-bert",
                partial(average_text, features=features),
                tuple({"last": last, "positives_only": choice} for last in (0, 20, 5, 1) for choice in BOTH),
            )
        )
    return {competitor.name: competitor for competitor in found}


NAMES = (*(name for name in competitors(None) if name != "sasrec"), "sasrec", "average-bert")
