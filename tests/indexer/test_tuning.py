"""Tuning: the recipe, the parameters it becomes, and the search."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from heliotrope_indexer.calibration import calibrate
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


NOTHING_SEEN = (np.empty(0, np.int64), np.empty(0, np.int64))


def test_items_that_were_seen_are_no_choices() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 50)).astype(np.float32)
    target = rng.integers(0, 45, 500)
    scores[np.arange(500), target] += 1.0
    plain = calibrate(scores, target, NOTHING_SEEN)
    users, rows = np.repeat(np.arange(500), 5), np.tile(np.arange(45, 50), 500)
    higher = scores.copy()
    higher[users, rows] = 9.0
    # Whatever seen items score changes nothing; were they drawn, a tenth of the choices would score 9.
    found = calibrate(higher, target, (users, rows))
    assert found.slope == pytest.approx(plain.slope, rel=0.1)
    assert calibrate(higher, target, NOTHING_SEEN).slope < 0.5 * plain.slope


def test_calibration_finds_the_truth_and_keeps_the_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4_000, 50)).astype(np.float32)
    # Choose targets with odds of exp(2 s) against the other items.
    odds = np.exp(2.0 * scores)
    target = np.array([rng.choice(50, p=row / row.sum()) for row in odds])
    found = calibrate(scores, target, NOTHING_SEEN)
    assert abs(found.slope - 2.0) < 0.2
    assert found.log_loss < 0.6
    probability = 1 / (1 + np.exp(-(found.slope * scores + found.intercept)))
    assert abs(float(probability[np.arange(4_000), target].mean() + probability.mean()) - 1.0) < 0.1


def test_calibration_of_a_useless_scorer_says_one_half() -> None:
    found = calibrate(np.zeros((20, 30), dtype=np.float32), np.arange(20), NOTHING_SEEN)
    assert abs(found.intercept) < 1e-6
    assert abs(found.log_loss - np.log(2)) < 1e-6
