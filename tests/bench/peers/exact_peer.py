"""The smallest engine: exact, in memory."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.peer import Found, NewItem, Peer, Question, Search, Site, unseen


class ExactPeer(Peer):
    """Scores everything; what it was told is kept, so that a test can look."""

    name = "exact"
    kind = "in process"
    packages = ()
    threaded = True
    description = "exact"

    def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        self.rows = {row: vector for row, vector in enumerate(vectors)}
        self.upserted: list[int] = []
        self.recorded: list[str] = []

    def prepare(self, question: Question, search: Search) -> Question:
        return question

    def search(self, prepared: Question) -> Found:
        scores = {row: float(vector @ prepared.vector) for row, vector in list(self.rows.items())}
        best = sorted(scores, key=lambda row: -scores[row])
        return unseen(best, [scores[row] for row in best], frozenset(prepared.seen))

    def upsert(self, items: Sequence[NewItem]) -> None:
        self.rows.update({item.row: item.vector for item in items})
        self.upserted += [item.row for item in items]


class ExactAsyncPeer(ExactPeer):
    """The same with coroutines, as a server's client has them."""

    threaded = False

    async def search(self, prepared: Question) -> Found:  # type: ignore[override]
        await asyncio.sleep(0)  # the other callers' turn, as while a server answers
        return super().search(prepared)

    async def upsert(self, items: Sequence[NewItem]) -> None:  # type: ignore[override]
        super().upsert(items)

    async def record(self, user_id: str, row: int, event_id: str) -> None:
        self.recorded.append(event_id)
