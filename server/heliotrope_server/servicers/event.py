"""EventService."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from heliotrope.v1 import event_pb2 as pb
from heliotrope.v1 import event_pb2_grpc
from heliotrope_server.engine import Engine
from heliotrope_server.errors import (
    InvalidArgumentError,
    ItemNotFoundError,
    RequestError,
    ShardUnreachableError,
)
from heliotrope_server.event import UserEvent, admit
from heliotrope_server.peers import Peer
from heliotrope_server.profile import Applied
from heliotrope_server.servicers.recommendation import error_message
from heliotrope_server.servicers.routing import UNREACHABLE, Router, relayed, remaining_s
from heliotrope_server.version_token import merge_tokens

MAX_BATCH = 1000

_OUTCOMES = {
    Applied.RECORDED: pb.EVENT_OUTCOME_RECORDED,
    Applied.DUPLICATE: pb.EVENT_OUTCOME_DUPLICATE,
    Applied.UNDO_TOO_OLD: pb.EVENT_OUTCOME_REJECTED,
}


class EventServicer(event_pb2_grpc.EventServiceServicer):
    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router

    async def RecordEvents(self, request: pb.RecordEventsRequest, context: Any) -> pb.RecordEventsResponse:
        size = len(request.events)
        if not 1 <= size <= MAX_BATCH:
            raise InvalidArgumentError(
                "INVALID_BATCH_SIZE",
                f"a batch holds 1 to {MAX_BATCH} events, not {size}",
                value=size,
                limit=MAX_BATCH,
            )
        results: list[pb.EventResult] = [pb.EventResult()] * size
        own, foreign = self._router.split(event.user_id for event in request.events)
        passing = [
            asyncio.create_task(self._pass_on(peer, request, places, remaining_s(context), results))
            for peer, places in foreign
        ]
        try:
            token = await self._record(request, own, results)
        finally:
            # Also when this shard's log fails: what the others acknowledge is not cancelled half-way.
            tokens = await asyncio.gather(*passing)
        if all(result.error.reason == UNREACHABLE for result in results):
            # Nothing was done: said as a status, so that clients try again by themselves.
            raise ShardUnreachableError(UNREACHABLE, results[0].error.message, **results[0].error.metadata)
        return pb.RecordEventsResponse(results=results, version_token=merge_tokens([token, *tokens]))

    async def StreamEvents(
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: Any
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        async for message in request_iterator:
            request = pb.RecordEventsRequest(events=message.events, history_import=message.history_import)
            try:
                yield pb.StreamEventsResponse(response=await self.RecordEvents(request, context))
            except RequestError as error:
                yield pb.StreamEventsResponse(error=error_message(error))

    async def _record(
        self, request: pb.RecordEventsRequest, places: Sequence[int], results: list[pb.EventResult]
    ) -> str:
        admitted: list[UserEvent] = []
        admitted_places: list[int] = []
        clock_s = self._engine.now_s()
        for place in places:
            message = request.events[place]
            try:
                admitted.append(self._admit(message, clock_s, request.history_import))
                admitted_places.append(place)
            except RequestError as error:
                results[place] = _rejected(message.event_id, error)
        if not admitted:
            return ""
        fates, lsn = await self._engine.record(admitted)
        for place, event, fate in zip(admitted_places, admitted, fates, strict=True):
            if fate.error is not None:
                results[place] = _rejected(event.event_id, fate.error)
            else:
                results[place] = pb.EventResult(event_id=event.event_id, outcome=_OUTCOMES[fate.applied])
        return self._engine.clock.token(lsn)

    def _admit(self, message: pb.Event, clock_s: float, history_import: bool) -> UserEvent:
        event = admit(
            user_id=message.user_id,
            event_id=message.event_id,
            kind=message.type,
            item_id=message.item_id,
            value=message.value if message.HasField("value") else None,
            time_s=message.event_time.seconds + message.event_time.nanos * 1e-9
            if message.HasField("event_time")
            else None,
            undone_event_id=message.undone_event_id,
            clock_s=clock_s,
            window_s=self._engine.settings.event_window_s,
            history_import=history_import,
        )
        if event.item_id and not self._engine.knows_item(event.item_id):
            raise ItemNotFoundError(
                "ITEM_NOT_FOUND",
                f"the catalogue has no item {event.item_id[:64]!r}",
                item_id=event.item_id,
            )
        return event

    async def _pass_on(
        self,
        peer: Peer,
        request: pb.RecordEventsRequest,
        places: list[int],
        timeout_s: float,
        results: list[pb.EventResult],
    ) -> str:
        part = pb.RecordEventsRequest(
            events=[request.events[place] for place in places], history_import=request.history_import
        )
        try:
            answered = await peer.events.RecordEvents(part, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            # The events of other shards may be recorded: each is told apart, and sending all again is safe.
            for place in places:
                results[place] = _rejected(request.events[place].event_id, relayed(peer, error))
            return ""
        for place, result in zip(places, answered.results, strict=True):
            results[place] = result
        return answered.version_token


def _rejected(event_id: str, error: RequestError) -> pb.EventResult:
    return pb.EventResult(event_id=event_id, outcome=pb.EVENT_OUTCOME_REJECTED, error=error_message(error))
