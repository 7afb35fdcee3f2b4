"""Users whose clicks follow a hidden A*: what is shown, what is clicked, and what learning from it gains."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.example import ExampleGroup
from heliotrope_server.learning.learner import Change, Decision, Learner
from heliotrope_server.learning.weights import Weights
from heliotrope_server.settings import LearningSettings

INTERCEPT = -4.0


class World:
    """Items and users with random vectors. The anchor differs from the hidden truth by `drift` of its norm."""

    def __init__(self, *, seed: int = 0, items: int = 300, users: int = 120, dimension: int = 8, drift: float = 0.25):
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.vectors = rng.normal(size=(items, dimension)).astype(np.float32)
        self.bias = rng.normal(scale=0.2, size=items)
        self.counts = rng.poisson(3.0, size=items).astype(np.float64)
        self.interests = rng.normal(size=(users, 1, dimension)).astype(np.float32) * np.float32(1.3 * dimension**-0.5)
        matrices = np.eye(dimension, dtype=np.float32)[None] * 0.8
        self.anchor = Weights(0, matrices, np.array([0.2]))
        noise = rng.normal(size=matrices.shape)
        noise *= drift * np.linalg.norm(matrices) / np.linalg.norm(noise)
        self.hidden = Weights(-1, (matrices + noise).astype(np.float32), np.array([0.3]))

    def learner(self, **settings: object) -> Learner:
        chosen = {"user_examples": 1_000_000, "promotion_examples": 400, "promotion_users": 30, **settings}
        scale = float((self.vectors**2).sum(axis=1).mean())
        return Learner(self.anchor, self.anchor, None, scale, LearningSettings(**chosen))

    def features(self) -> NDArray[np.float64]:
        return np.log1p(self.counts)[:, None]

    def scores(self, user: int, weights: Weights) -> NDArray[np.float64]:
        """Scores of all items for one user, (n,)."""
        interests = np.repeat(self.interests[user][None], len(self.vectors), axis=0)
        return weights.scores(interests, self.vectors, self.features()) + self.bias + INTERCEPT

    def show(
        self,
        user: int,
        weights: Weights,
        *,
        count: int = 8,
        exploration: float = 0.0,
        click: Callable[[int, int], float] | None = None,
        user_id: str | None = None,
    ) -> ExampleGroup:
        """The best items for a user and what came of them; every place is replaced by a random item with probability
        `exploration`. `click(user, row)` gives the reward, by default a draw from the hidden truth."""
        scores = self.scores(user, weights)
        shown = np.argsort(-scores)[:count].tolist()
        propensities = np.ones(count)
        if exploration:
            propensities[:] = 1.0 - exploration
            for place in range(count):
                if self.rng.random() < exploration:
                    pool = np.setdiff1d(np.arange(len(scores)), shown)
                    shown[place] = int(self.rng.choice(pool))
                    propensities[place] = exploration / len(pool)
        truth = 1.0 / (1.0 + np.exp(-self.scores(user, self.hidden)))
        rewards = [float(self.rng.random() < truth[row]) if click is None else click(user, row) for row in shown]
        return ExampleGroup(
            user_id or f"u{user}",
            "snapshot",
            self.interests[user],
            self.vectors[shown],
            self.features()[shown],
            self.bias[shown] + INTERCEPT,
            propensities,
            np.array(rewards),
        )

    def click_rate(self, weights: Weights, count: int = 8) -> float:
        """Expected clicks per item among the best `count` of all users, by the hidden truth."""
        total = 0.0
        for user in range(len(self.interests)):
            best = np.argsort(-self.scores(user, weights))[:count]
            total += float((1.0 / (1.0 + np.exp(-self.scores(user, self.hidden)[best]))).mean())
        return total / len(self.interests)

    def run(self, learner: Learner, answers: int, **shown: object) -> list[Decision]:
        """Shows `answers` lists with the active weights and learns from them, promoting and withdrawing at once."""
        decisions = []
        for number in range(answers):
            user = int(self.rng.integers(len(self.interests)))
            learner.take(self.show(user, learner.active, **shown), now_s=1.7e9 + number)
            decision = learner.learn()
            if decision is not None:
                decisions.append(decision)
                apply(learner, decision)
        return decisions


def apply(learner: Learner, decision: Decision) -> None:
    """What the server does with a decision, without the disk."""
    if decision.change is Change.PROMOTE:
        fresh = Weights(learner.active.version + 1, decision.weights.matrices, decision.weights.theta)
        learner.adopt(fresh, learner.active)
    else:
        learner.adopt(decision.weights, None)
