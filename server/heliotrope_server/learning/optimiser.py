"""One bounded, regularised gradient step on A_h and theta.

The loss of an example is the log loss of p = sigmoid(score) against the reward y, so its gradients are

    dL/dA_h = w (p - y) outer(v_h, x_i)        dL/dtheta = w (p - y) phi_i

with w the capped inverse propensity. The step is AdaGrad with one accumulator per matrix ("AdaGrad-Norm": Ward, Wu,
Bottou 2019), so that it does not depend on how the vector space happens to be rotated, followed by a pull towards the
snapshot's weights and the projection into `Bounds`.

Sizes are stated in units of the snapshot: gradients over the mean |x_i|^2, steps over ||A_h||_F. Per example the
gradient norm is clipped to 1, and the examples of one user weigh at most `user_share` of a batch. So no batch moves A_h
by more than `rate` ||A_h||_F, and one user's part in that is at most `user_share` of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.example import Batch, sigmoid
from heliotrope_server.learning.weights import Bounds, Weights

_FEATURE_SCALE = 5.0  # log1p of 150 recent events: what counts as a large live feature


@dataclass(frozen=True)
class StepSettings:
    """`rate`: largest share of ||A_h||_F that a batch can move; `pull`: share of the way back per step."""

    rate: float
    pull: float
    user_share: float


class Optimiser:
    """Holds the accumulators of one run of learning, for weights around `anchor`."""

    def __init__(self, anchor: Weights, bounds: Bounds, settings: StepSettings, item_scale: float) -> None:
        """`item_scale` is the mean |x_i|^2 of the catalogue."""
        self._anchor = anchor
        self._bounds = bounds
        self._settings = settings
        self._scale = max(item_scale, 1e-12)
        self._sizes = np.sqrt(np.einsum("hde,hde->h", anchor.matrices, anchor.matrices, dtype=np.float64))
        self._matrix_squares = np.ones(len(anchor.matrices))
        self._theta_squares = np.ones(len(anchor.theta))

    def step(self, weights: Weights, batch: Batch, base_rate: float) -> Weights:
        """Learns from one batch; `base_rate` is added to the scores (see `BaseRate`). Returns new weights.

        `weights.matrices` may be float64, which lets small steps add up; the result is of the same type.
        """
        settings = self._settings
        errors = sigmoid(batch.scores(weights) + base_rate) - batch.rewards
        errors *= batch.inverse_propensities()
        shares_of_users = user_factors(batch.users, settings.user_share) / batch.size
        lengths = np.sqrt(
            np.einsum("nhd,nhd->n", batch.interests, batch.interests, dtype=np.float64)
            * np.einsum("nd,nd->n", batch.vectors, batch.vectors, dtype=np.float64)
        )
        norms = np.abs(errors) * lengths / self._scale
        # Clipped first, weighed down after: an extreme example must not get back what its user's share took away.
        pulls = errors / self._scale / np.maximum(norms, 1.0) * shares_of_users
        gradients = np.stack(
            [
                (batch.interests[:, horizon] * pulls[:, None]).T @ batch.vectors
                for horizon in range(batch.interests.shape[1])
            ]
        )
        squares = np.einsum("hde,hde->h", gradients, gradients)
        self._matrix_squares += squares
        rates = settings.rate * self._sizes / np.sqrt(self._matrix_squares)
        matrices = weights.matrices - rates[:, None, None] * gradients
        matrices += settings.pull * (self._anchor.matrices - matrices)

        slopes = shares_of_users @ np.clip(errors[:, None] * batch.features / _FEATURE_SCALE, -1.0, 1.0)
        self._theta_squares += slopes**2
        theta_rate = settings.rate * self._bounds.theta_change
        theta = weights.theta - theta_rate * slopes / np.sqrt(self._theta_squares)
        theta += settings.pull * (self._anchor.theta - theta)
        return self._bounds.project(Weights(weights.version, matrices, theta), self._anchor)


def user_factors(users: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """Factors (n,) by which examples are weighed down so that no user makes up more than `share` of the batch."""
    counts = np.bincount(users)
    factors: NDArray[np.float64] = np.minimum(1.0, share * len(users) / np.maximum(counts, 1))[users]
    return factors
