"""How much more or less often shown items are taken than their probabilities say.

The snapshot's intercept was calibrated on other data than the feedback of one page or app. Without a constant of its
own the learner would bend A_h to make up for that, and weights could win a comparison by nothing but a better constant.
So each set of weights is judged with the constant that fits it best on the recent past. It orders nothing and is not
served.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.example import sigmoid

_REMEMBERED = 2048
_PRIOR = 1.0  # weight of "the constant is 0", in examples: keeps it finite when all rewards are equal
_MAX = 10.0


class BaseRate:
    """The constant c that minimises the log loss of sigmoid(score + c) over the newest examples, by Newton's method."""

    def __init__(self) -> None:
        self.constant = 0.0
        self._seen: deque[tuple[NDArray[np.float64], NDArray[np.float64]]] = deque()
        self._count = 0

    def add(self, scores: NDArray[np.float64], rewards: NDArray[np.float64]) -> None:
        """Takes in scores and rewards, both (n,), after they were used."""
        self._seen.append((scores, rewards))
        self._count += len(scores)
        while self._count - len(self._seen[0][0]) >= _REMEMBERED:
            self._count -= len(self._seen.popleft()[0])
        all_scores = np.concatenate([pair[0] for pair in self._seen])
        all_rewards = np.concatenate([pair[1] for pair in self._seen])
        for _ in range(3):
            probabilities = sigmoid(all_scores + self.constant)
            slope = float((probabilities - all_rewards).sum()) + _PRIOR * self.constant
            curvature = float((probabilities * (1.0 - probabilities)).sum()) + _PRIOR
            change = min(1.0, max(-1.0, slope / curvature))
            self.constant = min(_MAX, max(-_MAX, self.constant - change))
