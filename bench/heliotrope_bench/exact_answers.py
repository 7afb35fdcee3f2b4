"""What a server with snapshots and live items should have answered, worked out anew from what is open to anyone.

A second computation in NumPy: from the files of the snapshot that answered, the vectors of the items that came since,
and the events of the users. No figure of the server goes into it, so that what a swap does to profiles shows too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope import Event
from heliotrope_bench.newcomers import Newcomers
from heliotrope_indexer.snapshot import SnapshotStore

COUNTED_LATE_S = 0.25
"""Live counts are worked out a few times a second: an event moves interests at once and counts a moment later."""


@dataclass(frozen=True)
class Served:
    """One answer: to whom and when (Unix time), how many newcomers were acknowledged before it was asked for, whether
    seen items are in it, and the item that it is mostly about, if there is one.
    """

    user_id: str
    time_s: float
    acknowledged: int
    item_ids: Sequence[str]
    snapshot_version: str
    with_seen: bool = False
    about: str = ""


@dataclass(frozen=True)
class Judged:
    """`right` of `count` places hold one of the exact best; `missing` newcomers are among these and not in the list."""

    right: int
    count: int
    missing: Sequence[str]


class ExactAnswers:
    """Judges answers over everything that may be recommended at the time; `events` are all that were recorded by then.

    All events are positive, and of items that `snapshots` or `newcomers` know.
    """

    def __init__(self, store: Path, newcomers: Newcomers) -> None:
        self._store = SnapshotStore(str(store))
        self._newcomers = newcomers
        self._spaces: dict[str, _Space] = {}

    def judge(self, served: Served, events: Sequence[Event], settled: int | None = None) -> Judged:
        """How much of a list is right. An item that was on its way when the list was asked for may be in it, and the
        events behind the first `settled` (None: all are) may count for how popular an item is, or not yet.
        """
        space = self._spaces.get(served.snapshot_version)
        if space is None:
            space = self._spaces[served.snapshot_version] = _Space(
                self._store, served.snapshot_version, self._newcomers
            )
        own = [event for event in events if event.user_id == served.user_id]
        listed = [space.row_of[item_id] for item_id in served.item_ids]
        count = len(served.item_ids)
        all_counted, some = (
            self._scores(space, served, own, listed, counted) for counted in (events, events[:settled])
        )
        # An event lifts its item, and which of the last ones did is not known. So an item is wrong for certain where
        # with them it stands below what the last place has without them, and missed for certain where without them it
        # stands above what the last place can have with them; beyond rounding: what ties may be in or out.
        lowest, cut = (float(np.partition(scores, -count)[-count]) for scores in (some, all_counted))
        right = int(np.count_nonzero(all_counted[listed] >= lowest - 1e-5 * max(1.0, abs(lowest))))
        known = np.array(space.rows_of_newcomers[: served.acknowledged], np.int64)
        best = known[some[known] > cut + 1e-5 * max(1.0, abs(cut))]
        missing = [space.item_ids[row] for row in np.setdiff1d(best, listed).tolist()]
        return Judged(right, count, missing)

    def _scores(
        self, space: "_Space", served: Served, own: Sequence[Event], listed: Sequence[int], counted: Sequence[Event]
    ) -> NDArray[np.float64]:
        """(n,) scores of what the list could hold, -infinity for the rest."""
        scores = space.scores(own, counted, served.time_s)
        pending = np.array(space.rows_of_newcomers[served.acknowledged :], np.int64)
        scores[np.setdiff1d(pending, listed)] = -np.inf
        if not served.with_seen:
            scores[[space.row_of[event.item_id] for event in own]] = -np.inf
        return scores


class _Space:
    """The items of one snapshot with the newcomers that it does not hold laid behind them."""

    def __init__(self, store: SnapshotStore, version: str, newcomers: Newcomers) -> None:
        snapshot = store.open(version)
        known, coming = list(snapshot.item_ids), newcomers.item_ids
        held = set(known)
        late = [place for place, item_id in enumerate(coming) if item_id not in held]
        self.item_ids = known + [coming[place] for place in late]
        self.row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.rows_of_newcomers = [self.row_of[item_id] for item_id in coming]
        self._vectors = np.concatenate([snapshot.vectors, snapshot.project(newcomers.pooled[late])])
        self._bias = np.concatenate([snapshot.bias, np.zeros(len(late), np.float32)])
        self._prior, self._matrices = np.asarray(snapshot.prior), np.asarray(snapshot.scoring_matrices)
        self._parameters = snapshot.parameters

    def scores(self, own: Sequence[Event], counted: Sequence[Event], time_s: float) -> NDArray[np.float64]:
        """(n,) scores of all items for a user with `own` events, with the live counts that `counted` ones make."""
        parameters = self._parameters
        query = np.zeros(len(self._prior))
        for horizon, (half_life_s, kappa) in enumerate(zip(parameters.half_lives_s, parameters.kappas, strict=True)):
            total, mass = kappa * self._prior.astype(np.float64), kappa
            for event in own:
                gain = parameters.gain(event.type) * 2.0 ** ((_time_s(event) - time_s) / half_life_s)
                total += gain * self._vectors[self.row_of[event.item_id]]
                mass += abs(gain)
            query += (total / mass) @ self._matrices[horizon]
        scores: NDArray[np.float64] = (self._vectors @ query.astype(np.float32)).astype(np.float64) + self._bias
        newest: dict[tuple[str, str], float] = {}
        for event in counted:
            key = event.user_id, event.item_id
            newest[key] = max(newest.get(key, 0.0), _time_s(event))
        counts = np.zeros(len(scores))
        rows = np.array([self.row_of[item_id] for _, item_id in newest], np.int64)
        ages = time_s - np.array(list(newest.values()))
        np.add.at(counts, rows, 2.0 ** (-ages / parameters.popularity_half_life_s))
        return scores + parameters.live_popularity_weight * np.log1p(counts)


def _time_s(event: Event) -> float:
    assert isinstance(event.time, float), "a time that was set when the event was made"
    return event.time
