"""The engine of the server in this process: the same code as behind gRPC, without the calls."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.system import Served
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.answerer import Answer, Question
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.errors import RequestError
from heliotrope_server.event import EventKind, admit
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.settings import EngineSettings
from heliotrope_server.version_token import VersionClock


@contextmanager
def engine_system(data: Dataset, snapshots: Path, folder: Path, *, diversity: float = 0.0) -> Iterator["EngineSystem"]:
    """A started engine with a fresh data folder inside `folder`."""
    settings = EngineSettings(checkpoint_interval_s=86_400.0, diversity=diversity)
    with asyncio.Runner() as runner:
        engine = runner.run(started_engine(snapshots, folder, settings, Embedder(None)))
        try:
            yield EngineSystem(data, engine, runner)
        finally:
            runner.run(engine.stop())


async def started_engine(snapshots: Path, folder: Path, settings: EngineSettings, embedder: Embedder) -> Engine:
    """An engine of the running loop, with its data inside `folder`; stop it with `Engine.stop`."""
    catalogue = LiveCatalogue(SnapshotStore(str(snapshots)).open())
    clock = VersionClock("g-bench", 0, {})
    engine = Engine(folder / "shard", folder / "catalogue", catalogue, embedder, clock, settings)
    await engine.start()
    return engine


class EngineSystem:
    """See `heliotrope_bench.system.System`."""

    def __init__(self, data: Dataset, engine: Engine, runner: asyncio.Runner) -> None:
        self._data = data
        self._engine = engine
        # Not Runner.run(): its handling of Ctrl-C formats the task with its whole result, 15 ms a list.
        self._loop = runner.get_loop()
        self._rows = {item.item_id: row for row, item in enumerate(data.items)}

    def record(self, positions: list[int]) -> None:
        data = self._data
        events = [
            admit(
                user_id=data.user_ids[data.user[position]],
                event_id=str(position),
                kind=EventKind[data.kind(position).upper()],
                item_id=data.items[data.item[position]].item_id,
                value=float(data.value[position]),
                time_s=float(data.time[position]),
                undone_event_id="",
                clock_s=time.time(),
                window_s=self._engine.settings.event_window_s,
                history_import=True,
            )
            for position in positions
        ]
        fates, _ = self._loop.run_until_complete(self._engine.record(events))
        for event, fate in zip(events, fates, strict=True):
            if fate.error is not None:
                raise ServerLostError(f"the engine refused event {event.event_id} of the replay: {fate.error}")

    def declare(self, user_id: str, segments: tuple[str, ...]) -> None:
        self._loop.run_until_complete(self._engine.set_segments(user_id, segments))

    def ask(self, user_id: str, time_s: float, count: int) -> Served:
        question = Question(user_id, count, time_s=time_s)
        answer = self._loop.run_until_complete(self._answered(question))
        return Served(answer.item_ids, answer.scores, answer.probabilities)

    async def _answered(self, question: Question) -> Answer:
        return (await self._engine.recommend(question)).result

    def ask_for_all(self, user_id: str, time_s: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the data set's items and probabilities of every unseen item: longer than a request may ask for."""
        question = Question(user_id, self._engine.catalogue.size, time_s=time_s)
        (answer,) = self._engine.answerer.answer([question])
        if isinstance(answer, RequestError):
            raise ServerLostError(f"the engine cannot answer for {user_id}: {answer}")
        rows = np.array([self._rows[item_id] for item_id in answer.item_ids], np.int64)
        return rows, np.array(answer.probabilities)
