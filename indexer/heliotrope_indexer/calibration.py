"""Makes sigmoid(score) a probability (Platt, 1999), without touching any ranking.

The probability is that of a fair duel: how likely the user is to prefer this item as their next one, when
the choice is between it and one drawn evenly from the items they have not seen. It depends on no catalogue
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEGATIVES_PER_TARGET = 20
_STEPS = 50
_RIDGE = 1e-3


@dataclass(frozen=True)
class Calibration:
    """`sigmoid(slope * score + intercept)`; the slope is folded into the scoring layer, so served as one
    sum.
    """

    slope: float
    intercept: float
    log_loss: float
    """Mean of both halves on the sample it was fitted to; 0.693 is a coin."""


def calibrate(
    scores: NDArray[np.float32],
    target_row: NDArray[np.int64],
    seen: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    seed: int = 0,
) -> Calibration:
    """Fits slope and intercept to scores (U, n) of held-out targets (U,) against items drawn evenly from those that are
    neither the target nor among the `seen` pairs (users, rows), which would be the likeliest of all.
    """
    users, n = scores.shape
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n, size=(users, _NEGATIVES_PER_TARGET))
    choices = ~np.isin(np.arange(users)[:, None] * n + drawn, seen[0] * n + seen[1]) & (drawn != target_row[:, None])
    positive = scores[np.arange(users), target_row].astype(np.float64)
    negative = np.take_along_axis(scores, drawn, axis=1).ravel().astype(np.float64)
    spread = max(float(np.std(np.concatenate([positive, negative]))), 1e-9)
    x = np.concatenate([positive, negative]) / spread
    y = np.concatenate([np.ones(users), np.zeros(len(negative))])
    weight = np.concatenate([np.full(users, 0.5 / users), choices.ravel() * (0.5 / max(int(choices.sum()), 1))])
    slope, intercept = 1.0, 0.0
    design = np.stack([x, np.ones_like(x)])
    for _ in range(_STEPS):
        probability = _sigmoid(slope * x + intercept)
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
    slope = max(slope, 1e-3)
    probability = np.clip(_sigmoid(slope * x + intercept), 1e-12, 1 - 1e-12)
    loss = -float(np.sum(weight * (y * np.log(probability) + (1 - y) * np.log(1 - probability))))
    return Calibration(slope / spread, intercept, loss)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result
