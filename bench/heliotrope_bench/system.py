"""The system under test as the replay sees it, and the replay: every event and every question in global order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from heliotrope import Client, Event
from heliotrope_bench.dataset import Dataset
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.holdout import Holdout
from heliotrope_bench.job import Server

BATCH = 1_000


class Served(NamedTuple):
    """A list of recommendations, best first."""

    item_ids: list[str]
    scores: list[float]
    probabilities: list[float]


class System(Protocol):
    """What is replayed to: the engine in this process, or a server over gRPC."""

    def record(self, positions: list[int]) -> None:
        """Records these events of the data set and returns when they are applied."""

    def declare(self, user_id: str, segments: tuple[str, ...]) -> None:
        """The user belongs to these segments."""

    def ask(self, user_id: str, time_s: float, count: int) -> Served:
        """The best unseen items of a user, as of a time."""


def replay(
    holdout: Holdout, system: System, count: int, *, advance: Callable[[], None] = lambda: None
) -> Iterator[Served]:
    """Asks for each target just before it: by then all recorded events lie before it, and no other was recorded."""
    data, recorded, sent = holdout.dataset, holdout.replayed, 0
    if holdout.segments_known and data.segments is not None:
        for user_id, segments in zip(data.user_ids, data.segments, strict=True):
            system.declare(user_id, segments)
    for target in holdout.targets.tolist():
        due = int(np.searchsorted(recorded, target))
        while sent < due:
            batch = recorded[sent : min(sent + BATCH, due)]
            system.record(batch.tolist())
            sent += len(batch)
        yield system.ask(data.user_ids[data.user[target]], float(data.time[target]), count)
        advance()


@contextmanager
def server_system(
    data: Dataset, snapshots: Path, folder: Path, model: Path, *, diversity: float = 0.0
) -> Iterator[System]:
    """A `heliotrope serve` process on a fresh data folder inside `folder`, asked over gRPC."""
    arguments = [
        *("--snapshots", str(snapshots)),
        *("--data", str(folder / "data")),
        *("--model", str(model)),
        *("--port", "0"),
        # One shard: the live popularity of a second one would arrive a little later.
        *("--shards", "1"),
        *("--diversity", str(diversity)),
    ]
    with Server(arguments, log=folder / "serve.log") as server, Client(server.address, timeout_s=60.0) as client:
        yield _ServerSystem(data, client)


class _ServerSystem:
    def __init__(self, data: Dataset, client: Client) -> None:
        self._data = data
        self._client = client

    def record(self, positions: list[int]) -> None:
        data = self._data
        events = [
            Event(
                data.user_ids[data.user[position]],
                data.items[data.item[position]].item_id,
                data.kind(position),
                value=float(data.value[position]),
                time=float(data.time[position]),
                event_id=str(position),
            )
            for position in positions
        ]
        for result in self._client.record_events(events, history_import=True).rejected:
            raise ServerLostError(f"the server refused event {result.event_id} of the replay: {result.error.message}")

    def declare(self, user_id: str, segments: tuple[str, ...]) -> None:
        self._client.update_profile(user_id, segments=list(segments))

    def ask(self, user_id: str, time_s: float, count: int) -> Served:
        found = self._client.recommend(user_id, count=count, request_time=time_s).recommendations
        return Served([one.item_id for one in found], [one.score for one in found], [one.probability for one in found])
