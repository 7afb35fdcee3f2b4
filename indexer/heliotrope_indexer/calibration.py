"""Makes a probability of a score, without touching any ranking.

The probability is that of a fair duel: how likely the user is to prefer this item as their next one, when
the choice is between it and one drawn evenly from the items they have not seen. It depends on no catalogue
size.

First a slope and an intercept (Platt, 1999), so that scores are log-odds but for what no straight line can say: items
that a liked item speaks for score on another scale than the rest. What remains is taken up by a curve of a few straight
pieces over the scores, as steep as each other where there are too few users to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from heliotrope_indexer.parameters import LogOddsCurve

_NEGATIVES_PER_TARGET = 20
_STEPS = 50
_RIDGE = 1e-3
_KNOTS = 6
_EVENNESS = 1.0
"""Users that the squared difference in slope of two pieces weighs as much as."""
_LEAST_SLOPE = 1e-3
_BEYOND = 1_000.0
"""How far behind the outer knots their pieces go on."""


@dataclass(frozen=True)
class Calibration:
    """The probability is `sigmoid(curve(slope * score + intercept))`; slope and intercept are folded into the scoring
    layer, so that the sum is what is served as the score.
    """

    slope: float
    intercept: float
    curve: LogOddsCurve | None
    """None: scores are the same for everything."""
    log_loss: float
    """Mean of both halves on the sample it was fitted to; 0.693 is a coin."""


def calibrate(
    scores: NDArray[np.float32],
    target_row: NDArray[np.int64],
    seen: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    seed: int = 0,
) -> Calibration:
    """Fits slope, intercept and curve to scores (U, n) of held-out targets (U,) against items drawn evenly from those
    that are neither the target nor among the `seen` pairs (users, rows), which would be the likeliest of all.
    """
    users, n = scores.shape
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n, size=(users, _NEGATIVES_PER_TARGET))
    choices = ~np.isin(np.arange(users)[:, None] * n + drawn, seen[0] * n + seen[1]) & (drawn != target_row[:, None])
    positive = scores[np.arange(users), target_row].astype(np.float64)
    negative = np.take_along_axis(scores, drawn, axis=1).ravel().astype(np.float64)
    x = np.concatenate([positive, negative])
    y = np.concatenate([np.ones(users), np.zeros(len(negative))])
    weight = np.concatenate([np.full(users, 0.5 / users), choices.ravel() * (0.5 / max(int(choices.sum()), 1))])
    slope, intercept = _line(x, y, weight)
    log_odds = slope * x + intercept
    curve = _curve(log_odds, y, weight, users)
    if curve is not None:
        log_odds = np.interp(log_odds, curve.scores, curve.log_odds)
    return Calibration(slope, intercept, curve, _log_loss(log_odds, y, weight))


def _line(x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept by Newton's method."""
    spread = max(float(np.std(x)), 1e-9)
    slope, intercept = 1.0, 0.0
    design = np.stack([x / spread, np.ones_like(x)])
    for _ in range(_STEPS):
        probability = expit(slope * design[0] + intercept)
        gradient = design @ (weight * (probability - y)) + _RIDGE * np.array([slope, 0.0])
        curvature = (design * (weight * probability * (1 - probability))) @ design.T
        curvature += np.diag([_RIDGE, 1e-9])
        step = np.linalg.solve(curvature, gradient)
        # A bounded Newton step cannot run away where the sigmoid is flat.
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        slope, intercept = slope - float(step[0]), intercept - float(step[1])
        if np.abs(step).max() < 1e-9:
            break
    # A scorer that is worse than chance must not be turned around.
    return max(slope, 1e-3) / spread, intercept


def _curve(
    x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64], users: int
) -> LogOddsCurve | None:
    """Log-odds over scores x that nearly are log-odds, between knots at even shares of the weight.

    Minimises users * log loss + evenness * sum of squared differences of neighbouring slopes: convex in the log-odds of
    the first knot and the slopes.
    """
    order = np.argsort(x)
    share = np.cumsum(weight[order])
    knots = np.unique(np.interp((np.arange(_KNOTS) + 0.5) / _KNOTS * share[-1], share, x[order]))
    widths = np.diff(knots)
    if not len(widths) or widths.min() < 1e-6:
        return None
    piece = np.clip(np.searchsorted(knots, x) - 1, 0, len(widths) - 1)
    inside = x - knots[piece]

    def log_odds_of(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        starts = theta[0] + np.concatenate([[0.0], np.cumsum(theta[1:] * widths)])
        found: NDArray[np.float64] = starts[piece] + theta[1:][piece] * inside
        return found

    def cost(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_odds = log_odds_of(theta)
        error = users * weight * (expit(log_odds) - y)
        bends = np.diff(theta[1:])
        by_piece = np.bincount(piece, error, minlength=len(widths))
        behind = by_piece[::-1].cumsum()[::-1] - by_piece
        slopes = behind * widths + np.bincount(piece, error * inside, minlength=len(widths))
        slopes += 2.0 * _EVENNESS * (np.append(0.0, bends) - np.append(bends, 0.0))
        total = users * _log_loss(log_odds, y, weight) + _EVENNESS * float(bends @ bends)
        return total, np.concatenate([[error.sum()], slopes])

    found = minimize(
        cost,
        np.concatenate([[knots[0]], np.ones(len(widths))]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] + [(_LEAST_SLOPE, None)] * len(widths),
    )
    first, slopes = found.x[0], found.x[1:]
    at = np.concatenate([[knots[0] - _BEYOND], knots, [knots[-1] + _BEYOND]])
    values = first + np.concatenate([[0.0], np.cumsum(slopes * widths)])
    values = np.concatenate([[values[0] - _BEYOND * slopes[0]], values, [values[-1] + _BEYOND * slopes[-1]]])
    return LogOddsCurve(scores=tuple(at.tolist()), log_odds=tuple(values.tolist()))


def _log_loss(log_odds: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    return float(np.sum(weight * (np.logaddexp(0.0, log_odds) - y * log_odds)))
