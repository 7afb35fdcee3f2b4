"""The learner: shadow weights that learn from every batch, and the rules by which they become the active ones.

    active     what is served; never changed in place
    shadow     starts as the active ones and takes every step
    previous   what was active before the last promotion, to go back to

Each batch is first scored by all three, then learned from. Shadow weights are promoted when, over at least
`promotion_examples` of at least `promotion_users`, their log loss is lower by more than a margin beyond
`promotion_errors` standard errors and their off-policy loss is not higher; they start again from the active ones when
they are as surely worse. Promoted weights are withdrawn when the previous ones beat them by the same test on later
feedback.
"""

from collections import deque
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.learning.base_rate import BaseRate
from heliotrope_server.learning.example import Batch, ExampleGroup, log_losses, make_batch
from heliotrope_server.learning.optimiser import Optimiser, StepSettings
from heliotrope_server.learning.quota import UserQuota
from heliotrope_server.learning.validation import Comparison, Verdict
from heliotrope_server.learning.weights import Bounds, Weights
from heliotrope_server.settings import LearningSettings

_LOOKS = 10
"""A comparison that has not decided after this many times `promotion_examples` starts anew: it is about old weights."""


class Change(Enum):
    """What should happen to the active weights."""

    PROMOTE = "promote"
    WITHDRAW = "withdraw"


class Decision(NamedTuple):
    """A change of the active weights and why. `weights` carry no version yet when they are to be promoted."""

    change: Change
    weights: Weights
    verdict: Verdict


class Learner:
    """Pure arithmetic on the event loop of the leader; knows no disk and no network."""

    def __init__(
        self, anchor: Weights, active: Weights, previous: Weights | None, item_scale: float, settings: LearningSettings
    ) -> None:
        self.anchor = anchor
        self.example_count = 0
        self.over_quota_count = 0
        self.discard_count = 0
        self._settings = settings
        self._quota = UserQuota(settings.user_examples, settings.user_window_s)
        self._bounds = Bounds(settings.max_matrix_change, settings.max_theta_change)
        step = StepSettings(settings.learning_rate, settings.learning_pull, settings.user_batch_share)
        self._optimiser = Optimiser(anchor, self._bounds, step, item_scale)
        self._waiting: deque[ExampleGroup] = deque()
        self._waiting_size = 0
        self._rng = np.random.default_rng(0)
        self._shadow = active
        self.adopt(active, previous)

    def adopt(self, active: Weights, previous: Weights | None) -> None:
        """Takes these as what is served, and learns on from them. All comparisons start anew."""
        self.active, self.previous = active, previous
        self._rates = {"previous": BaseRate()}
        self._since_promotion = Comparison()
        self._start_shadow()

    @property
    def waiting_count(self) -> int:
        """Examples that wait for a batch to fill."""
        return self._waiting_size

    @property
    def shadow_verdict(self) -> Verdict:
        return self._since_start.verdict()

    @property
    def previous_verdict(self) -> Verdict | None:
        """How the previous weights compare with the active ones; None when there is nothing to go back to."""
        return None if self.previous is None else self._since_promotion.verdict()

    def take(self, group: ExampleGroup, now_s: float) -> None:
        """Queues what the quota of the user leaves of a group: a random part, so that no reward is favoured."""
        granted = self._quota.take(group.user_id, group.size, now_s)
        self.over_quota_count += group.size - granted
        if not granted:
            return
        if granted < group.size:
            group = _part(group, np.sort(self._rng.choice(group.size, granted, replace=False)))
        self._waiting.append(group)
        self._waiting_size += group.size

    def learn(self) -> Decision | None:
        """Learns from one batch, if one is full; says what should become of the active weights.

        After a decision the caller makes it durable and calls `adopt`.
        """
        if self._waiting_size < self._settings.learning_batch:
            return None
        groups, size = [], 0
        while size < self._settings.learning_batch:
            groups.append(self._waiting.popleft())
            size += groups[-1].size
        self._waiting_size -= size
        self.example_count += size
        batch = make_batch(groups)
        self._judge(batch)
        self._shadow = self._optimiser.step(self._shadow, batch, self._rates["shadow"].constant)
        return self._decide(size)

    def shadow_weights(self) -> Weights:
        """The shadow weights as they would be served."""
        return Weights(self._shadow.version, self._shadow.matrices.astype(np.float32), self._shadow.theta)

    def _start_shadow(self) -> None:
        # float64: a step may be smaller than the rounding of float32.
        self._shadow = Weights(self.active.version, self.active.matrices.astype(np.float64), self.active.theta)
        self._rates |= {"active": BaseRate(), "shadow": BaseRate()}
        self._since_start = Comparison()

    def _judge(self, batch: Batch) -> None:
        sets = {"active": self.active, "shadow": self._shadow}
        if self.previous is not None:
            sets["previous"] = self.previous
        scores = {name: batch.scores(weights) for name, weights in sets.items()}
        losses = {name: log_losses(scores[name] + self._rates[name].constant, batch.rewards) for name in sets}
        self._since_start.add(batch, losses["active"], losses["shadow"])
        if self.previous is not None:
            self._since_promotion.add(batch, losses["active"], losses["previous"])
        for name in sets:
            self._rates[name].add(scores[name], batch.rewards)

    def _decide(self, size: int) -> Decision | None:
        """Looks at the comparisons each time they have grown by `promotion_examples`, not more often: every look is a
        chance to be fooled."""
        settings = self._settings
        wanted, margin, errors = settings.promotion_examples, settings.promotion_margin, settings.promotion_errors
        if self.previous is not None and _crossed(self._since_promotion.examples, size, wanted):
            verdict = self._since_promotion.verdict()
            if verdict.users >= settings.promotion_users and verdict.better(margin, errors):
                return Decision(Change.WITHDRAW, self.previous, verdict)
            if self._since_promotion.examples >= _LOOKS * wanted:
                self._since_promotion = Comparison()
        if _crossed(self._since_start.examples, size, wanted):
            verdict = self._since_start.verdict()
            if verdict.users >= settings.promotion_users:
                if verdict.better(margin, errors):
                    return Decision(Change.PROMOTE, self.shadow_weights(), verdict)
                if verdict.worse(margin, errors):
                    self.discard_count += 1
                    self._start_shadow()
            if self._since_start.examples >= _LOOKS * wanted:
                self._since_start = Comparison()
        return None


def _crossed(examples: int, size: int, step: int) -> bool:
    """Whether the last `size` examples took the count past a multiple of `step`."""
    return examples // step > (examples - size) // step


def _part(group: ExampleGroup, places: NDArray[np.int64]) -> ExampleGroup:
    return group._replace(
        vectors=group.vectors[places],
        features=group.features[places],
        offsets=group.offsets[places],
        propensities=group.propensities[places],
        rewards=group.rewards[places],
    )
