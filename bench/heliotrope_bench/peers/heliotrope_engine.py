"""Heliotrope's engine in this process, without gRPC: beside the peers that have no server either."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope import Event
from heliotrope_bench.engine_system import started_engine
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.peers.heliotrope_server import Interests, OurData, item_id, row_of
from heliotrope_bench.peers.peer import COUNT, Found, NewItem, Peer, Search, Site
from heliotrope_bench.peers.peer import Question as Asked
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.answerer import Question
from heliotrope_server.catalogue_log import encode_upsert
from heliotrope_server.embedder import Embedder
from heliotrope_server.event import EventKind, admit
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.record_log import RecordLog
from heliotrope_server.settings import EngineSettings

_BATCH = 1_000


class HeliotropeEngine(Peer):
    """See the module. Events and items go through the same logs as behind the server."""

    name = "Heliotrope engine"
    kind = "in process"
    packages = ()
    widths = (COUNT,)
    description = "as built"

    def __init__(self, data: OurData) -> None:
        self._data = data

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        """Starts the engine and records the users' past; the vectors are in the snapshot."""
        data = self._data
        self._engine = await started_engine(data.snapshots, site.folder, EngineSettings(), Embedder(None))
        self._log = RecordLog(site.folder / "catalogue")
        for start in range(0, len(data.past), _BATCH):
            await self._record(data.past[start : start + _BATCH])

    def prepare(self, question: Asked, search: Search) -> Question:
        return Question(question.user_id, COUNT)

    async def search(self, prepared: Question) -> Found:
        answer = (await self._engine.recommend(prepared)).result
        return Found([row_of(one) for one in answer.item_ids], answer.scores)

    async def upsert(self, items: Sequence[NewItem]) -> None:
        engine = self._engine
        entries = []
        for item in items:
            assert item.embedding is not None, "the items that arrive come with their vectors"
            vector = np.array(item.embedding.values, np.float32)
            known, name = item.embedding.model_version, item_id(item.row)
            added_s = engine.added_s(name)
            entries.append(
                DeltaItem(CatalogItem(name, item.text), vector, None, 0.0, engine.catalogue.version, known, added_s)
            )
        await self._log.append([encode_upsert(entry) for entry in entries], lambda first: first)
        engine.catch_up_catalogue()

    async def record(self, user_id: str, row: int, event_id: str) -> None:
        await self._record([Event(user_id, item_id(row), "click", event_id=event_id)])

    async def interests(self, user_ids: Sequence[str], touched: Sequence[int]) -> Interests:
        """What the engine knows; the same as of the server."""
        engine, now = self._engine, self._engine.now_s()
        parameters = engine.catalogue.parameters
        vectors = [engine.profile(user_id).interest_vectors(now, parameters) for user_id in user_ids]
        return Interests(np.array(vectors, np.float64), engine.popularity.counts_at(now)[: engine.catalogue.base_count])

    async def close(self) -> None:
        if hasattr(self, "_engine"):
            self._log.close()
            await self._engine.stop()

    async def _record(self, events: Sequence[Event]) -> None:
        now = self._engine.now_s()
        admitted = [
            admit(
                user_id=event.user_id,
                event_id=event.event_id,
                kind=EventKind[event.type.upper()],
                item_id=event.item_id,
                value=event.value,
                time_s=float(event.time) if isinstance(event.time, int | float) else now,
                undone_event_id="",
                clock_s=now,
                window_s=self._engine.settings.event_window_s,
                history_import=False,
            )
            for event in events
        ]
        fates, _ = await self._engine.record(admitted)
        for event, fate in zip(events, fates, strict=True):
            if fate.error is not None:
                raise ServerLostError(f"the engine refused {event.event_id}: {fate.error}")
