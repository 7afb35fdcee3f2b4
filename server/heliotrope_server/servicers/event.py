"""EventService."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from heliotrope.v1 import event_pb2 as pb
from heliotrope.v1 import event_pb2_grpc
from heliotrope_server.byte_gate import ByteGate
from heliotrope_server.engine import Engine, EventFate
from heliotrope_server.errors import (
    InvalidArgumentError,
    ItemNotFoundError,
    OverloadedError,
    RequestError,
    ShardUnreachableError,
)
from heliotrope_server.event import Admission, UserEvent
from heliotrope_server.item_numbers import same_id
from heliotrope_server.peers import Peer
from heliotrope_server.profile import Applied
from heliotrope_server.servicers.recommendation import error_message
from heliotrope_server.servicers.routing import UNREACHABLE, Router, part_s, relayed
from heliotrope_server.version_token import merge_tokens

MAX_BATCH = 1000

_RECORDED, _DUPLICATE = pb.EVENT_OUTCOME_RECORDED, pb.EVENT_OUTCOME_DUPLICATE

Batch = pb.RecordEventsRequest | pb.StreamEventsRequest


class EventServicer(event_pb2_grpc.EventServiceServicer):
    """`gate` bounds the events that wait for the disk of this shard, whoever sent them."""

    def __init__(self, engine: Engine, router: Router, gate: ByteGate) -> None:
        self._engine = engine
        self._router = router
        self._gate = gate

    async def RecordEvents(self, request: pb.RecordEventsRequest, context: Any) -> pb.RecordEventsResponse:
        return await self._record_all(request, context)

    async def StreamEvents(
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: Any
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        async for request in request_iterator:
            try:
                yield pb.StreamEventsResponse(response=await self._record_all(request, context))
            except RequestError as error:
                yield pb.StreamEventsResponse(error=error_message(error))

    async def _record_all(self, request: Batch, context: Any) -> pb.RecordEventsResponse:
        """Records the events of all shards, with one result for each."""
        events = list(request.events)
        size = len(events)
        if not 1 <= size <= MAX_BATCH:
            raise InvalidArgumentError(
                "INVALID_BATCH_SIZE",
                f"a batch holds 1 to {MAX_BATCH} events, not {size}",
                value=size,
                limit=MAX_BATCH,
            )
        if self._router.alone:
            with self._gate.hold(request.ByteSize()):
                return await self._record(events, request.history_import)
        own, foreign = self._router.split(event.user_id for event in events)
        passing = [
            asyncio.create_task(
                self._pass_on(peer, [events[place] for place in places], request.history_import, part_s(context))
            )
            for peer, places in foreign
        ]
        try:
            answers = [await self._record_own([events[place] for place in own], request.history_import)]
        finally:
            # Also when this shard's log fails: what the others acknowledge is not cancelled half-way.
            passed = await asyncio.gather(*passing)
        answers += passed
        results: list[pb.EventResult] = [pb.EventResult()] * size
        for places, answer in zip([own, *(places for _, places in foreign)], answers, strict=True):
            for place, result in zip(places, answer.results, strict=True):
                results[place] = result
        if all(result.error.reason == UNREACHABLE for result in results):
            # Nothing was done: said as a status, so that clients try again by themselves.
            raise ShardUnreachableError(UNREACHABLE, results[0].error.message, **results[0].error.metadata)
        if all(result.error.reason == OverloadedError.reason for result in results):
            raise OverloadedError.again(results[0].error.message, results[0].error.metadata)
        return pb.RecordEventsResponse(
            results=results, version_token=merge_tokens([answer.version_token for answer in answers])
        )

    async def _record_own(self, messages: Sequence[pb.Event], history_import: bool) -> pb.RecordEventsResponse:
        """Records this shard's part of a batch; a refusal for overload stands at each event, as those of others do."""
        try:
            with self._gate.hold(sum(message.ByteSize() for message in messages)):
                return await self._record(messages, history_import)
        except OverloadedError as error:
            return pb.RecordEventsResponse(results=[_rejected(message.event_id, error) for message in messages])

    async def _record(self, messages: Sequence[pb.Event], history_import: bool) -> pb.RecordEventsResponse:
        """Records the events of this shard."""
        engine = self._engine
        known = engine.catalogue.rows
        admit = Admission(engine.now_s(), engine.settings.event_window_s, history_import).admit
        admitted: list[UserEvent] = []
        refused: dict[int, RequestError] = {}
        for place, message in enumerate(messages):
            time = message.event_time if message.HasField("event_time") else None
            try:
                event = admit(
                    message.user_id,
                    message.event_id,
                    message.type,
                    same_id(message.item_id),
                    message.value if message.HasField("value") else None,
                    None if time is None else time.seconds + time.nanos * 1e-9,
                    message.undone_event_id,
                )
                if event.item_id and event.item_id not in known:
                    raise ItemNotFoundError(
                        "ITEM_NOT_FOUND", f"the catalogue has no item {event.item_id[:64]!r}", item_id=event.item_id
                    )
                admitted.append(event)
            except RequestError as error:
                refused[place] = error
        response = pb.RecordEventsResponse()
        fates: Sequence[EventFate] = ()
        if admitted:
            fates, lsn = await engine.record(admitted)
            response.version_token = engine.clock.token(lsn)
        results, add = response.results, response.results.add
        waiting = zip(admitted, fates, strict=True)
        for place in range(len(messages)):
            if place in refused:
                results.append(_rejected(messages[place].event_id, refused[place]))
                continue
            event, (applied, fault) = next(waiting)
            if fault is not None:
                results.append(_rejected(event.event_id, fault))
            else:
                add(event_id=event.event_id, outcome=_RECORDED if applied is Applied.RECORDED else _DUPLICATE)
        return response

    async def _pass_on(
        self, peer: Peer, events: list[pb.Event], history_import: bool, timeout_s: float
    ) -> pb.RecordEventsResponse:
        part = pb.RecordEventsRequest(events=events, history_import=history_import)
        try:
            return await peer.events.RecordEvents(part, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            # The events of other shards may be recorded: each is told apart, and sending all again is safe.
            refusal = relayed(peer, error)
            return pb.RecordEventsResponse(results=[_rejected(event.event_id, refusal) for event in events])


def _rejected(event_id: str, error: RequestError) -> pb.EventResult:
    return pb.EventResult(event_id=event_id, outcome=pb.EVENT_OUTCOME_REJECTED, error=error_message(error))
