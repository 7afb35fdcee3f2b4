"""Which rating of each user is held out, and what a model may know before it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import Dataset

PROTOCOL = (
    "last positive of each user held out (at least one earlier event, item not seen before); all earlier events of "
    "the user are history, later ones are dropped; ranked against the full catalogue without seen items; history "
    "and every live count hold only events before the target in the global order of time (ties: order of the "
    "file); models built in one batch are trained on all events but targets and dropped ones; a tie gets its "
    "expected rank"
)


@dataclass(frozen=True)
class Holdout:
    """T targets, each an event of `dataset`, in global order, and the events that may be learnt from.

    `targets` (T,) and `train` (N,) are ascending positions of events; they are disjoint, and for the user of a
    target every train event lies before it.
    """

    dataset: Dataset
    targets: NDArray[np.int64]
    train: NDArray[np.int64]

    def histories(self) -> list[NDArray[np.int64]]:
        """For each target, the positions of its user's train events, ascending."""
        by_user: dict[int, list[int]] = {int(self.dataset.user[target]): [] for target in self.targets}
        for position in self.train:
            events = by_user.get(int(self.dataset.user[position]))
            if events is not None:
                events.append(int(position))
        return [np.array(by_user[int(self.dataset.user[target])], np.int64) for target in self.targets]

    def validation(self) -> "Holdout":
        """The same cut once more inside the train events: where hyper-parameters are tuned."""
        return hold_out(self.dataset, self.train)


def hold_out(dataset: Dataset, events: NDArray[np.int64] | None = None) -> Holdout:
    """Cuts `events` (ascending positions, default: all) as `PROTOCOL` says."""
    events = np.arange(len(dataset)) if events is None else events
    targets: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    started: set[int] = set()
    positive = dataset.positive
    for position in events.tolist():
        user, item = int(dataset.user[position]), int(dataset.item[position])
        if positive[position] and user in started and (user, item) not in seen:
            targets[user] = position
        seen.add((user, item))
        started.add(user)
    last = np.full(len(dataset.user_ids), len(dataset))
    for user, position in targets.items():
        last[user] = position
    train = events[events < last[dataset.user[events]]]
    return Holdout(dataset, np.array(sorted(targets.values()), np.int64), train)
