"""Cuts histories into windows of context and targets, and packs windows of like length into batches.

A window is a stretch of one user's events in order of time: its last events are targets, each of which sees
everything of the window before it. Every event is a target exactly once, the first one of a user, too: that
is what the prior is learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.events import EventTable

TARGETS = 64
"""Targets of a window at most."""
_BATCH_CELLS = 20_000
"""Events of a batch at most, padding included."""


@dataclass(frozen=True)
class Batch:
    """B windows of S events and T targets, padded."""

    event: NDArray[np.int64]
    """(B, S) positions in the event table; 0 where padded."""
    valid: NDArray[np.bool_]
    """(B, S)."""
    age_s: NDArray[np.float32]
    """(B, S) seconds before the window's last event, so that float32 is exact where half-lives are short."""
    target: NDArray[np.int64]
    """(B, T) positions in the event table; 0 where padded."""
    place: NDArray[np.int64]
    """(B, T) how many events of the window stand before each target."""
    target_age_s: NDArray[np.float32]
    """(B, T)."""
    weight: NDArray[np.float32]
    """(B, T) in the loss; 0 where padded."""


class Windows:
    """The windows of all users with at least one event that counts in the loss."""

    def __init__(self, events: EventTable, weight: NDArray[np.float32], *, context: int) -> None:
        """`weight` (E,) is each event's as a target."""
        self._time, self._weight = events.time, weight
        self._order = np.argsort(events.user, kind="stable")
        user = events.user[self._order]
        starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(user) else np.empty(0, np.int64)
        windows = []
        for begin, end in zip(starts, np.r_[starts[1:], len(user)], strict=True):
            for first in range(begin, end, TARGETS):
                last = min(first + TARGETS, end)
                if weight[self._order[first:last]].any():
                    windows.append((max(begin, first - context), first, last))
        self._windows = np.array(windows, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._windows)

    def parts(self, targets: int) -> int:
        """How many parts of at most about `targets` targets all windows make."""
        return max(1, -(-int((self._windows[:, 2] - self._windows[:, 1]).sum()) // targets))

    def batches(
        self, targets: int, rng: np.random.Generator, windows: NDArray[np.int64] | None = None
    ) -> Iterator[Batch]:
        """The `windows` (numbers below len; default: all) once, in random order, about `targets` targets a batch."""
        chosen = np.arange(len(self)) if windows is None else windows
        start, first, end = self._windows.T
        lengths, counts = end - start, end - first
        order = chosen[np.lexsort((lengths[chosen] + 4 * rng.random(len(chosen)), counts[chosen] // 8))]
        groups: list[list[int]] = [[]]
        filled = 0
        for window in order.tolist():
            group = groups[-1]
            # Within a group lengths grow, so that the newest window tells how wide the batch is.
            if group and (filled >= targets or (len(group) + 1) * lengths[window] > _BATCH_CELLS):
                groups.append(group := [])
                filled = 0
            group.append(window)
            filled += int(counts[window])
        for group_number in rng.permutation(len(groups)):
            if groups[group_number]:
                yield self._pack(groups[group_number])

    def _pack(self, group: list[int]) -> Batch:
        start, first, end = self._windows[group].T
        events, valid = self._padded(start, end)
        targets, asked = self._padded(first, end)
        newest = self._time[self._order[end - 1]][:, None]
        return Batch(
            event=events,
            valid=valid,
            age_s=(newest - self._time[events]).astype(np.float32),
            target=targets,
            place=(first - start)[:, None] + np.arange(targets.shape[1]),
            target_age_s=(newest - self._time[targets]).astype(np.float32),
            weight=np.where(asked, self._weight[targets], 0).astype(np.float32),
        )

    def _padded(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        offsets = begin[:, None] + np.arange(int((end - begin).max()))
        valid = offsets < end[:, None]
        return np.where(valid, self._order[np.minimum(offsets, len(self._order) - 1)], 0), valid
