"""Heliotrope as others are asked: its own server, pinned, through gRPC. It holds the users too."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from heliotrope import AsyncClient, Client, Event
from heliotrope.v1.catalog_pb2 import Item
from heliotrope.v1.event_pb2 import EVENT_OUTCOME_REJECTED, RecordEventsRequest, RecordEventsResponse
from heliotrope.v1.recommendation_pb2 import (
    RecommendRequest,
    RecommendResponse,
    StreamRecommendRequest,
    StreamRecommendResponse,
)
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.job import Server
from heliotrope_bench.load_data import RECOMMEND, RECORD_EVENTS, STREAM_RECOMMEND, record
from heliotrope_bench.peers.peer import COUNT, Found, NewItem, Peer, Question, Search, Site
from heliotrope_bench.recall import SnapshotArrays, live_counts

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class OurData:
    """What Heliotrope serves: a store whose items are called i0, i1, ... by row, and its users' past."""

    snapshots: Path
    past: Sequence[Event]


class Interests(NamedTuple):
    """What scores hang on now: interest vectors (users, H, d), and live counts of the snapshot's rows (n,)."""

    vectors: NDArray[np.float64]
    live_counts: NDArray[np.float64]


class HeliotropeServer(Peer):
    """See the module. It is asked with whatever its snapshot was built for; `Search` says nothing to it."""

    name = "Heliotrope"
    kind = "server"
    packages = ()
    widths = (COUNT,)
    description = "as built; gRPC"

    def __init__(self, data: OurData) -> None:
        self._data = data
        self._exits = ExitStack()

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        """Starts the server and records the users' past; the vectors are in the snapshot."""
        data = self._data
        flags = ["--snapshots", str(data.snapshots), "--data", str(site.folder / "data"), "--port", "0"]
        server = Server(flags, log=site.folder / "serve.log", cpus=site.server_cpus)
        self._server = self._exits.enter_context(server)
        with Client(server.address, timeout_s=CALL_TIMEOUT_S) as client:
            record(client, data.past)
        self._client = AsyncClient(server.address, timeout_s=CALL_TIMEOUT_S)
        self._channel = grpc.aio.insecure_channel(server.address)
        self._recommend: Any = self._channel.unary_unary(RECOMMEND, response_deserializer=RecommendResponse.FromString)
        self._record: Any = self._channel.unary_unary(
            RECORD_EVENTS, response_deserializer=RecordEventsResponse.FromString
        )

    def prepare(self, question: Question, search: Search) -> bytes:
        return RecommendRequest(user_id=question.user_id, count=COUNT).SerializeToString()

    async def search(self, prepared: bytes) -> Found:
        answer = await self._recommend(prepared, timeout=CALL_TIMEOUT_S)
        return Found(
            [row_of(one.item_id) for one in answer.recommendations], [one.score for one in answer.recommendations]
        )

    async def upsert(self, items: Sequence[NewItem]) -> None:
        await self._client.upsert_items(
            [Item(item_id=item_id(item.row), title=item.text, text_embedding=item.embedding) for item in items]
        )

    async def record(self, user_id: str, row: int, event_id: str) -> None:
        event = Event(user_id, item_id(row), "click", event_id=event_id).to_proto()
        answer = await self._record(RecordEventsRequest(events=[event]).SerializeToString(), timeout=CALL_TIMEOUT_S)
        if answer.results[0].outcome == EVENT_OUTCOME_REJECTED:
            raise ServerLostError(f"the server refused {event_id}: {answer.results[0].error.message}")

    async def interests(self, user_ids: Sequence[str], touched: Sequence[int]) -> Interests:
        """What the server knows; only `touched` rows can have a live count."""
        limit = asyncio.Semaphore(64)

        async def vectors(user_id: str) -> list[Sequence[float]]:
            async with limit:
                profile = await self._client.get_profile(user_id)
            return [vector.values for vector in profile.interest_vectors]

        rows = {item_id(row): row for row in touched}
        snapshot = SnapshotArrays.read(self._data.snapshots, self._server.snapshot)
        counts = await live_counts(self._client, snapshot, rows, rows)
        return Interests(np.array(await asyncio.gather(*map(vectors, user_ids)), np.float64), counts)

    def server_pid(self) -> int:
        return self._server.pid

    async def close(self) -> None:
        if hasattr(self, "_channel"):
            await self._channel.close()
            await self._client.close()
        await asyncio.to_thread(self._exits.close)


class HeliotropeStreams(HeliotropeServer):
    """The same server, asked on a stream for each caller: as the peers' callers hold a connection each."""

    name = "Heliotrope, streams"
    description = "as built; gRPC, a stream for each caller"

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        await super().load(vectors, site)
        open_stream: Any = self._channel.stream_stream(
            STREAM_RECOMMEND, response_deserializer=StreamRecommendResponse.FromString
        )
        # A caller takes the stream that was last given back; there are as many as callers.
        self._idle = [open_stream() for _ in range(site.callers)]

    def prepare(self, question: Question, search: Search) -> bytes:
        request = RecommendRequest(user_id=question.user_id, count=COUNT)
        return StreamRecommendRequest(request=request).SerializeToString()

    async def search(self, prepared: bytes) -> Found:
        stream = self._idle.pop()
        await stream.write(prepared)
        answer = await stream.read()
        if answer is grpc.aio.EOF or not answer.HasField("response"):
            raise ServerLostError(f"the server ended a stream: {answer}")
        self._idle.append(stream)
        found = answer.response.recommendations
        return Found([row_of(one.item_id) for one in found], [one.score for one in found])


def item_id(row: int) -> str:
    """The id of a row: those of the snapshot are called so, and new items go on."""
    return f"i{row}"


def row_of(item_id: str) -> int:
    """The row of an id."""
    return int(item_id[1:])
