"""Progressive validation: is one set of weights better than another on feedback that neither has seen?

Every example is scored by both before anything is learned from it ("test, then train": Blum, Kalai, Langford 1999). Two
things are compared: the log loss on what was shown, and the log loss on what *could* have been shown, estimated by
self-normalised inverse propensities (SNIPS: Swaminathan, Joachims 2015; for the error of a recommender: Schnabel et al.
2016):

    L = sum w loss / sum w,    w = min(1 / propensity, 100)

Weights could otherwise win by fitting nothing but the items that the active ones show. That only means something where
items were drawn with known propensities below 1; otherwise it is not available. Standard errors are clustered by user:
a user with many examples counts as one witness.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.example import Batch

MAX_WEIGHT = 100.0
"""Cap on an inverse propensity: an item drawn from a thousand must not outweigh a thousand others."""

MIN_DRAWN_EXAMPLES = 50
"""The off-policy loss is available once so many items with a propensity below one half were judged."""


class Difference(NamedTuple):
    """How much better the challenger is, in the mean, with its standard error."""

    mean: float
    standard_error: float


class Verdict(NamedTuple):
    """What the comparison says so far; losses are means in nats. `off_policy` is None where SNIPS is not available."""

    examples: int
    users: int
    defender_loss: float
    challenger_loss: float
    gain: Difference
    off_policy: Difference | None
    defender_off_policy_loss: float
    challenger_off_policy_loss: float

    def better(self, margin: float, errors: float) -> bool:
        """Whether the challenger's log loss is lower by more than `margin` beyond `errors` standard errors, and its
        off-policy loss, where there is one, not higher by more than one standard error."""
        surely = self.gain.mean - errors * self.gain.standard_error > margin
        return surely and (self.off_policy is None or self.off_policy.mean >= -self.off_policy.standard_error)

    def worse(self, margin: float, errors: float) -> bool:
        """The same for the other direction, on log loss alone."""
        return -self.gain.mean - errors * self.gain.standard_error > margin


class Comparison:
    """Sums of one comparison, by user. The number of users is bounded by the number of examples between two resets."""

    def __init__(self) -> None:
        self.examples = 0
        self._verdict: Verdict | None = None
        self._losses = np.zeros(2)
        self._by_user: dict[str, NDArray[np.float64]] = {}  # (5,): n, gain, sum w, sum w loss of each
        self._drawn_examples = 0

    def add(self, batch: Batch, defender_losses: NDArray[np.float64], challenger_losses: NDArray[np.float64]) -> None:
        """Takes in one batch and the losses of both on it, (n,)."""
        self._verdict = None
        self.examples += batch.size
        self._losses += (float(defender_losses.sum()), float(challenger_losses.sum()))
        self._drawn_examples += int((batch.propensities < 0.5).sum())
        weights = np.minimum(1.0 / batch.propensities, MAX_WEIGHT)
        columns = (
            np.ones(batch.size),
            defender_losses - challenger_losses,
            weights,
            weights * defender_losses,
            weights * challenger_losses,
        )
        count = len(batch.user_ids)
        sums = np.stack([np.bincount(batch.users, column, minlength=count) for column in columns], axis=1)
        for user_id, row in zip(batch.user_ids, sums, strict=True):
            known = self._by_user.get(user_id)
            self._by_user[user_id] = row.copy() if known is None else known + row

    def verdict(self) -> Verdict:
        """Costs time by the number of users, so it is kept until more examples come in."""
        if self._verdict is None:
            self._verdict = self._compare()
        return self._verdict

    def _compare(self) -> Verdict:
        count = max(self.examples, 1)
        sums = np.array(list(self._by_user.values())).reshape(-1, 5)
        mean = float(sums[:, 1].sum()) / count
        error = _clustered_error(sums[:, 1] - sums[:, 0] * mean, count)
        defender_loss, challenger_loss = (self._losses / count).tolist()
        off_policy, estimates = self._off_policy(sums)
        gain = Difference(mean, error)
        return Verdict(self.examples, len(self._by_user), defender_loss, challenger_loss, gain, off_policy, *estimates)

    def _off_policy(self, sums: NDArray[np.float64]) -> tuple[Difference | None, tuple[float, float]]:
        if self._drawn_examples < MIN_DRAWN_EXAMPLES:
            return None, (math.nan, math.nan)
        total = float(sums[:, 2].sum())
        estimates = sums[:, 3:].sum(axis=0) / total
        # Linearised (delta method): each user's influence on L is sum of w (loss - L) over the sum of w.
        influences = (sums[:, 3:] - estimates * sums[:, 2:3]) / total
        error = _clustered_error(influences[:, 0] - influences[:, 1], 1)
        defender, challenger = estimates.tolist()
        return Difference(defender - challenger, error), (defender, challenger)


def _clustered_error(deviations: NDArray[np.float64], count: int) -> float:
    """Standard error of a mean over `count` examples, from the summed deviations of each user; inf for one user."""
    users = len(deviations)
    if users < 2:
        return math.inf
    return math.sqrt(float((deviations**2).sum()) * users / (users - 1)) / count
