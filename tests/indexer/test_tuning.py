"""Tuning: the recipe, the parameters it becomes, and the search."""

from __future__ import annotations

from functools import cache

import numpy as np

from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.item_vectors import ItemVectors, learn_item_vectors, population_mean
from heliotrope_indexer.replay import Replay, hold_out
from heliotrope_indexer.tuning import Recipe, Tuned, Tuner


@cache
def learn(norm_power: float) -> ItemVectors:
    from tests.indexer.conftest import WordEncoder, some_events, some_items

    pooled = WordEncoder().encode([item.text for item in some_items(30)]).vectors
    remaining, _ = hold_out(some_events(), 4.0)
    return learn_item_vectors(
        features(pooled, feature_mean(pooled)), remaining, collaborative=8, text=4, norm_power=norm_power, threads=1
    )


def some_tuner() -> tuple[Replay, Tuner]:
    from tests.indexer.conftest import some_events

    remaining, targets = hold_out(some_events(), 4.0)
    replay = Replay(remaining, targets, 30)
    return replay, Tuner(replay, learn, highest_rating=5.0)


def served(replay: Replay, tuned: Tuned) -> np.ndarray:
    """Scores from what would be in the snapshot, by the replay's own formula."""
    learned = learn(tuned.recipe.norm_power).scaled(1.0, tuned.scoring.text_factor)
    bias = (tuned.scoring.bias_factor * np.log1p(learned.counts)).astype(np.float32)
    prior = np.float32(tuned.recipe.prior_weight) * population_mean(learned.vectors, learned.counts)
    return replay.scores(learned.vectors, bias, prior, tuned.scoring.scoring_matrices, tuned.scoring.parameters)


def test_the_published_parameters_score_as_tuned() -> None:
    replay, tuner = some_tuner()
    recipe = Recipe(long_text_weight=0.2, rating_center=0.4, norm_power=0.5)
    tuned = tuner.finish(recipe)
    scores = served(replay, tuned)
    np.testing.assert_allclose(scores, tuned.calibration.slope * tuner._scores(recipe), rtol=1e-3, atol=1e-4)
    assert replay.quality(scores) == tuned.quality
