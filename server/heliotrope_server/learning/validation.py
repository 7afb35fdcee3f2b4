"""Progressive validation: is one set of weights better than another on feedback that neither has seen?

Every example is scored by both before anything is learned from it ("test, then train": Blum, Kalai, Langford 1999). Two
things are compared: the log loss, and the value of the order that each would give to the shown items, by
self-normalised inverse propensities (SNIPS: Swaminathan, Joachims 2015)

    V = sum w y / sum w
    w = [the weights would put this item at this place p] * min(1 / propensity, 10) / log2(p + 2)

(p from 0, discounted as in DCG, since the same items in another order hold the same rewards; capped, since an item
drawn from a thousand would otherwise outweigh a thousand others). That only means something where places were drawn
with known probabilities below 1; otherwise it is not available. Standard errors are clustered by user: a user with many
examples counts as one witness.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.example import Batch

MIN_EFFECTIVE_EXAMPLES = 50.0
"""SNIPS is available once both orders have this effective sample size, (sum w)^2 / sum w^2."""


class Difference(NamedTuple):
    """How much better the challenger is, in the mean, with its standard error."""

    mean: float
    standard_error: float


class Verdict(NamedTuple):
    """What the comparison says so far. The losses are means in nats; `value` is None where SNIPS is not available."""

    examples: int
    users: int
    defender_loss: float
    challenger_loss: float
    gain: Difference
    value: Difference | None
    defender_value: float
    challenger_value: float

    def better(self, margin: float, errors: float) -> bool:
        """Whether the challenger's log loss is lower by more than `margin` beyond `errors` standard errors, and its
        SNIPS value, where there is one, not lower by more than one standard error."""
        surely = self.gain.mean - errors * self.gain.standard_error > margin
        return surely and (self.value is None or self.value.mean >= -self.value.standard_error)

    def worse(self, margin: float, errors: float) -> bool:
        """The same for the other direction, on log loss alone."""
        return -self.gain.mean - errors * self.gain.standard_error > margin


class Comparison:
    """Sums of one comparison, by user. The number of users is bounded by the number of examples between two resets."""

    def __init__(self) -> None:
        self.examples = 0
        self._verdict: Verdict | None = None
        self._losses = np.zeros(2)
        self._by_user: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._orders: dict[str, NDArray[np.float64]] = {}  # by user: (2, 3) of sum w, sum w y, sum w^2

    def add(
        self,
        batch: Batch,
        defender_losses: NDArray[np.float64],
        challenger_losses: NDArray[np.float64],
        defender_scores: NDArray[np.float64],
        challenger_scores: NDArray[np.float64],
    ) -> None:
        """Takes in one batch; all arrays are (n,)."""
        self._verdict = None
        self.examples += batch.size
        self._losses += (float(defender_losses.sum()), float(challenger_losses.sum()))
        count = len(batch.user_ids)
        gains = np.bincount(batch.users, defender_losses - challenger_losses, minlength=count)
        counts = np.bincount(batch.users, minlength=count)
        for user_id, gain, examples in zip(batch.user_ids, gains.tolist(), counts.tolist(), strict=True):
            sums = self._by_user[user_id]
            sums[0] += gain
            sums[1] += examples
        inverses = batch.inverse_propensities()
        for start, end in zip(batch.starts, [*batch.starts[1:], batch.size], strict=True):
            if (batch.propensities[start:end] < 1.0).any():
                sums_of_user = self._orders.setdefault(batch.user_ids[batch.users[start]], np.zeros((2, 3)))
                for row, scores in enumerate((defender_scores, challenger_scores)):
                    weights = in_place(scores[start:end]) * inverses[start:end] / np.log2(np.arange(2, end - start + 2))
                    sums_of_user[row] += (
                        weights.sum(),
                        (weights * batch.rewards[start:end]).sum(),
                        (weights**2).sum(),
                    )

    def verdict(self) -> Verdict:
        """Costs time by the number of users, so it is kept until more examples come in."""
        if self._verdict is None:
            self._verdict = self._compare()
        return self._verdict

    def _compare(self) -> Verdict:
        count = max(self.examples, 1)
        sums = np.array(list(self._by_user.values())).reshape(-1, 2)
        mean = float(sums[:, 0].sum()) / count
        error = _clustered_error(sums[:, 0] - sums[:, 1] * mean, count)
        defender_loss, challenger_loss = (self._losses / count).tolist()
        value, values = self._value()
        return Verdict(
            self.examples,
            len(self._by_user),
            defender_loss,
            challenger_loss,
            Difference(mean, error),
            value,
            *values,
        )

    def _value(self) -> tuple[Difference | None, tuple[float, float]]:
        sums = np.array(list(self._orders.values())).reshape(-1, 2, 3)
        total, rewarded, squares = sums.sum(axis=0).T
        if not (total**2 >= MIN_EFFECTIVE_EXAMPLES * np.maximum(squares, 1e-12)).all():
            return None, (math.nan, math.nan)
        values = rewarded / total
        # Linearised (delta method): each user's influence on V is sum of w (y - V) over the sum of w.
        influences = (sums[:, :, 1] - values * sums[:, :, 0]) / total
        error = _clustered_error(influences[:, 1] - influences[:, 0], 1)
        return Difference(float(values[1] - values[0]), error), (float(values[0]), float(values[1]))


def in_place(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for each shown item that these scores would leave where it stood among the shown ones, else 0; (k,)."""
    order = np.argsort(-scores, kind="stable")
    kept: NDArray[np.float64] = (order == np.arange(len(scores))).astype(np.float64)
    return kept


def _clustered_error(deviations: NDArray[np.float64], count: int) -> float:
    """Standard error of a mean over `count` examples, from the summed deviations of each user; inf for one user."""
    users = len(deviations)
    if users < 2:
        return math.inf
    return math.sqrt(float((deviations**2).sum()) * users / (users - 1)) / count
