"""Which events of a data set are asked for, what batch models may learn from, and what is known at each question."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import Dataset

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Holdout:
    """T targets, each an event of `dataset`, in global order, and the events that may be known.

    `targets` (T,), `train` (N,) and `replayed` (R,) are ascending positions of events. Batch models are fitted on
    `train`. A question is asked just before its target; by then the `replayed` events before the target were recorded,
    and no other. `replayed` is `train` where not given. A variant may also record the events of `aside`. With
    `segments_known` all users say before the first event which segments of the data set they belong to.
    """

    dataset: Dataset
    targets: Positions
    train: Positions
    replayed: Positions = field(default_factory=lambda: _NOT_GIVEN)
    aside: Positions = field(default_factory=lambda: _NOT_GIVEN)
    segments_known: bool = False

    def __post_init__(self) -> None:
        if self.replayed is _NOT_GIVEN:
            object.__setattr__(self, "replayed", self.train)

    def histories(self) -> list[Positions]:
        """For each target, the positions of its user's recorded events before it, ascending."""
        user = self.dataset.user[self.replayed]
        order = np.argsort(user, kind="stable")
        grouped = self.replayed[order]
        starts = np.searchsorted(user[order], np.arange(len(self.dataset.user_ids) + 1))
        histories = []
        for target in self.targets.tolist():
            row = self.dataset.user[target]
            own = grouped[starts[row] : starts[row + 1]]
            histories.append(own[: np.searchsorted(own, target)])
        return histories

    def sample(self, count: int, seed: int = 0) -> "Holdout":
        """The same with at most `count` targets, drawn at random; what is left out stays out of the train events."""
        if len(self.targets) <= count:
            return self
        drawn = np.random.default_rng(seed).choice(len(self.targets), count, replace=False)
        return replace(self, targets=self.targets[np.sort(drawn)])

    @property
    def users(self) -> NDArray[np.int64]:
        """The user of each target (T,)."""
        return self.dataset.user[self.targets]

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal splits: only results of equal fingerprint may be compared."""
        digest = hashlib.sha256(self.dataset.name.encode())
        for positions in (self.targets, self.train, self.replayed):
            digest.update(len(positions).to_bytes(8, "little") + positions.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


_NOT_GIVEN: Positions = np.empty(0, np.int64)


def hold_out(dataset: Dataset, events: Positions | None = None, *, among: NDArray[np.bool_] | None = None) -> Holdout:
    """Holds out each user's last positive among `events` (ascending positions, default: all).

    The user has an earlier event and has not seen the item before. All earlier events of the user are history; later
    ones are dropped. With `among` (items,) only targets on these items count.
    """
    events = np.arange(len(dataset)) if events is None else events
    qualified = events[first_sights(dataset, events) & dataset.positive[events]]
    if among is not None:
        qualified = qualified[among[dataset.item[qualified]]]
    started = np.full(len(dataset.user_ids), len(dataset))
    np.minimum.at(started, dataset.user[events], events)
    qualified = qualified[qualified > started[dataset.user[qualified]]]
    last = np.full(len(dataset.user_ids), -1)
    np.maximum.at(last, dataset.user[qualified], qualified)
    limit = np.where(last < 0, len(dataset), last)
    return Holdout(dataset, np.sort(last[last >= 0]), events[events < limit[dataset.user[events]]])


def first_sights(dataset: Dataset, events: Positions) -> NDArray[np.bool_]:
    """(len(events),) where an event is the first of its user with its item among `events`."""
    pairs = dataset.user[events] * len(dataset.items) + dataset.item[events]
    first = np.zeros(len(events), bool)
    first[np.unique(pairs, return_index=True)[1]] = True
    return first
