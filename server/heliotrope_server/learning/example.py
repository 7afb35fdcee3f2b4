"""Examples: what one user was shown, as numbers, with what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.weights import Weights

MAX_INVERSE_PROPENSITY = 10.0
"""Examples of rarely drawn items weigh more, but not more than this: unbounded weights would be a lever for anyone."""


class ExampleGroup(NamedTuple):
    """k items of one answer, in the order in which they were shown, with rewards y in [0, 1].

    `interests` (H, d) are the v_h that scored them, `vectors` (k, d) their x_i, `features` (k, K) their live features
    phi at that moment. `offsets` (k,) is the part of each score that is not learned, so that under any weights
    score = offset + sum_h v_h^T A_h x_i + theta . phi. `propensities` (k,) are the probabilities of having stood there.
    """

    user_id: str
    snapshot_version: str
    interests: NDArray[np.float32]
    vectors: NDArray[np.float32]
    features: NDArray[np.float64]
    offsets: NDArray[np.float64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]

    @property
    def size(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Batch:
    """Groups laid end to end: n examples. `users` (n,) numbers the users, `starts` are where the groups begin."""

    users: NDArray[np.int64]
    user_ids: list[str]
    starts: list[int]
    interests: NDArray[np.float32]
    vectors: NDArray[np.float32]
    features: NDArray[np.float64]
    offsets: NDArray[np.float64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]

    @property
    def size(self) -> int:
        return len(self.rewards)

    def scores(self, weights: Weights) -> NDArray[np.float64]:
        """The whole scores under these weights, (n,)."""
        return self.offsets + weights.scores(self.interests, self.vectors, self.features)

    def inverse_propensities(self) -> NDArray[np.float64]:
        return np.minimum(1.0 / self.propensities, MAX_INVERSE_PROPENSITY)


def make_batch(groups: Sequence[ExampleGroup]) -> Batch:
    """Stacks groups of one snapshot; there must be at least one."""
    numbers: dict[str, int] = {}
    users = np.concatenate(
        [np.full(group.size, numbers.setdefault(group.user_id, len(numbers)), dtype=np.int64) for group in groups]
    )
    starts = np.cumsum([0, *(group.size for group in groups[:-1])]).tolist()
    return Batch(
        users,
        list(numbers),
        starts,
        np.concatenate([np.repeat(group.interests[None], group.size, axis=0) for group in groups]),
        np.concatenate([group.vectors for group in groups]),
        np.concatenate([group.features for group in groups]),
        np.concatenate([group.offsets for group in groups]),
        np.concatenate([group.propensities for group in groups]),
        np.concatenate([group.rewards for group in groups]),
    )


def sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(scores, -60.0, 60.0)
    probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-clipped))
    return probabilities


def log_losses(scores: NDArray[np.float64], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """-y log p - (1 - y) log(1 - p) with p = sigmoid(score), in nats, (n,)."""
    losses: NDArray[np.float64] = np.logaddexp(0.0, scores) - rewards * scores
    return losses
