"""Users with a taste: each takes items near one that was drawn for them, and now and then anything.

Without one all users would ask nearly the same: the mean of items of all kinds is short, the biases decide, and any
graph finds ten items with large biases. As it is, the lists of two users share 0.19 of their items (30,000 texts); with
two tastes each, and a quarter of strays, it would be 0.46.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope import Event
from heliotrope_bench.load_data import PAST_S, TYPES
from heliotrope_bench.peers.closed_loop import NewEvent
from heliotrope_bench.peers.heliotrope_server import item_id

NEAR = 50
"""Items of a taste."""
STRAY = 0.1
"""Share of the events on any item of the catalogue."""


class Readers:
    """Users u0, u1, ... over items with vectors (n, d); seeded."""

    def __init__(self, vectors: NDArray[np.float32], users: int, seed: int = 0) -> None:
        self._items = len(vectors)
        self._seed = seed
        self.user_ids = [f"u{number}" for number in range(users)]
        generator = np.random.default_rng(seed)
        near = min(NEAR, self._items)
        self._pools = np.empty((users, near), np.int64)
        for pool, centre in zip(self._pools, generator.integers(self._items, size=users), strict=True):
            pool[:] = np.argpartition(-(vectors @ vectors[centre]), near - 1)[:near]

    def past(self, events_per_user: int) -> list[Event]:
        """So many events of each user, spread over the last days."""
        generator = np.random.default_rng(self._seed + 1)
        users = np.tile(np.arange(len(self.user_ids)), events_per_user)
        rows = self._drawn(users, generator)
        ages = generator.uniform(0, PAST_S, len(users)).tolist()
        kinds = generator.integers(len(TYPES), size=len(users)).tolist()
        now = time.time()
        return [
            Event(self.user_ids[user], item_id(row), TYPES[kind], time=now - age, event_id=f"past-{place}")  # type: ignore[arg-type]
            for place, (user, row, age, kind) in enumerate(zip(users.tolist(), rows, ages, kinds, strict=True))
        ]

    def clicks(self, number: int, salt: str) -> list[NewEvent]:
        """New events of users drawn at random; `salt` makes them, and their ids, others."""
        generator = np.random.default_rng([self._seed + 2, *salt.encode()])
        users = generator.integers(len(self.user_ids), size=number)
        rows = self._drawn(users, generator)
        return [
            NewEvent(self.user_ids[user], row, f"{salt}-{place}")
            for place, (user, row) in enumerate(zip(users.tolist(), rows, strict=True))
        ]

    def _drawn(self, users: NDArray[np.int64], generator: np.random.Generator) -> Sequence[int]:
        """A row for each of these users."""
        near = self._pools[users, generator.integers(self._pools.shape[1], size=len(users))]
        stray = generator.random(len(users)) < STRAY
        rows: list[int] = np.where(stray, generator.integers(self._items, size=len(users)), near).tolist()
        return rows
