"""Calibration: probabilities that come true, in the order of the scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from heliotrope_bench.calibration import calibration_error
from heliotrope_indexer.calibration import calibrate

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
    # A straight line is the truth, and a straight line it stays.
    assert found.curve is not None
    inner = slice(1, -1)
    np.testing.assert_allclose(found.curve.log_odds[inner], found.curve.scores[inner], atol=0.15)
    probability = expit(np.interp(found.slope * scores + found.intercept, found.curve.scores, found.curve.log_odds))
    assert abs(float(probability[np.arange(4_000), target].mean() + probability.mean()) - 1.0) < 0.1


def test_calibration_of_a_mixture_fits_no_straight_line_and_still_tells_the_truth() -> None:
    """Some items stand far above the rest, and are not as much likelier as that."""
    rng = np.random.default_rng(0)
    users, n = 4_000, 60
    suggested = rng.random((users, n)) < 0.1
    log_odds = rng.normal(scale=0.5, size=(users, n)) + 1.5 * suggested
    target = np.array([rng.choice(n, p=row / row.sum()) for row in np.exp(log_odds)])
    scores = (log_odds + 6.0 * suggested).astype(np.float32)
    found = calibrate(scores, target, NOTHING_SEEN)
    assert found.curve is not None

    def error(log_odds: np.ndarray) -> float:
        probability = expit(log_odds)
        own = probability[np.arange(users), target]
        others = np.delete(probability.ravel(), np.arange(users) * n + target)
        return calibration_error(
            np.concatenate([own, others]),
            np.concatenate([np.ones(users), np.zeros(len(others))]),
            np.concatenate([np.full(users, 0.5 / users), np.full(len(others), 0.5 / len(others))]),
        )

    line = found.slope * scores.astype(np.float64) + found.intercept
    assert error(line) > 0.05
    assert error(np.interp(line, found.curve.scores, found.curve.log_odds)) < 0.025
    assert (np.diff(found.curve.log_odds) > 0.0).all()


def test_calibration_of_a_useless_scorer_says_one_half() -> None:
    found = calibrate(np.zeros((20, 30), dtype=np.float32), np.arange(20), NOTHING_SEEN)
    assert found.curve is None
    assert abs(found.intercept) < 1e-6
    assert abs(found.log_loss - np.log(2)) < 1e-6
