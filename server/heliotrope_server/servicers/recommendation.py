"""RecommendationService."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc

from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope_server.access.interceptor import caller
from heliotrope_server.answerer import Answer, Question
from heliotrope_server.engine import Engine
from heliotrope_server.errors import InvalidArgumentError, RequestError
from heliotrope_server.item_filter import ItemFilter
from heliotrope_server.list_rules import ListRules
from heliotrope_server.micro_batcher import Timed
from heliotrope_server.peers import Peer
from heliotrope_server.servicers.examination import explain_response
from heliotrope_server.servicers.item_filter import item_filter
from heliotrope_server.servicers.reply import encode_batch, encode_response, outcome_of
from heliotrope_server.servicers.routing import Router, part_s, passed_on, relayed

MAX_BATCH = 256
MAX_IN_FLIGHT = 64
"""Questions of one stream that may wait for their answers; the next is read when one has gone out."""


class RecommendationServicer:
    """The methods of the service, with replies that are encoded already: see `add_to`."""

    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service, as the generated function would, but for the encoding of replies."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Recommend": grpc.unary_unary_rpc_method_handler(self.recommend, pb.RecommendRequest.FromString),
            "BatchRecommend": grpc.unary_unary_rpc_method_handler(
                self.batch_recommend, pb.BatchRecommendRequest.FromString
            ),
            "Explain": grpc.unary_unary_rpc_method_handler(
                self.explain, pb.ExplainRequest.FromString, pb.ExplainResponse.SerializeToString
            ),
            "StreamRecommend": grpc.stream_stream_rpc_method_handler(
                self.stream_recommend, pb.StreamRecommendRequest.FromString
            ),
        }
        name = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))

    async def recommend(self, request: pb.RecommendRequest, context: Any) -> bytes:
        """RecommendResponse."""
        owner = self._router.owner(request.user_id)
        if owner is not None:
            call = owner.recommendations.Recommend(request, timeout=part_s(context), wait_for_ready=True)
            return (await passed_on(owner, call)).SerializeToString()
        return self._response(request.user_id, await self._asked(request, context))

    async def batch_recommend(self, request: pb.BatchRecommendRequest, context: Any) -> bytes:
        """BatchRecommendResponse."""
        size = len(request.requests)
        if not 1 <= size <= MAX_BATCH:
            raise InvalidArgumentError(
                "INVALID_BATCH_SIZE",
                f"a batch holds 1 to {MAX_BATCH} requests, not {size}",
                value=size,
                limit=MAX_BATCH,
            )
        results: list[bytes] = [b""] * size
        own, foreign = self._router.split(single.user_id for single in request.requests)
        passing = [
            asyncio.create_task(self._pass_on(peer, request, places, part_s(context), results))
            for peer, places in foreign
        ]
        questions: dict[int, Question] = {}
        for place in own:
            try:
                questions[place] = self._question(request.requests[place])
            except RequestError as error:
                results[place] = _failed(error)
        try:
            outcomes = await self._engine.recommend_many(
                list(questions.values()), client=caller(context), deadline_s=_deadline_s(context)
            )
        finally:
            await asyncio.gather(*passing)
        for place, outcome in zip(questions, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                results[place] = _failed(outcome)
            else:
                self._note(request.requests[place].user_id, outcome)
                results[place] = outcome_of(encode_response(outcome))
        return encode_batch(results)

    async def explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        owner = self._router.owner(request.request.user_id)
        if owner is not None:
            call = owner.recommendations.Explain(request, timeout=part_s(context), wait_for_ready=True)
            return await passed_on(owner, call)
        wished = request.counterfactual_count if request.HasField("counterfactual_count") else None
        question = self._question(request.request)
        return explain_response(await self._engine.explain(question, request.item_ids, wished))

    async def stream_recommend(
        self, requests: AsyncIterator[pb.StreamRecommendRequest], context: Any
    ) -> AsyncIterator[bytes]:
        """StreamRecommendResponse, in the order of the questions, which are worked on together."""
        asked: asyncio.Queue[_Asked | BaseException | None] = asyncio.Queue(MAX_IN_FLIGHT)

        async def read() -> None:
            try:
                async for message in requests:
                    await asked.put(self._ask_ahead(message.request, context))
            except Exception as error:
                await asked.put(error)
            else:
                await asked.put(None)

        reading = asyncio.create_task(read())
        try:
            while (entry := await asked.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                yield await self._streamed(entry)
        finally:
            reading.cancel()
            while not asked.empty():
                left = asked.get_nowait()
                if isinstance(left, _Asked) and isinstance(left.answer, asyncio.Future):
                    left.answer.cancel()

    def _ask_ahead(self, request: pb.RecommendRequest, context: Any) -> "_Asked":
        """Starts on a question of a stream."""
        owner = self._router.owner(request.user_id)
        if owner is None:
            try:
                return _Asked(request.user_id, self._asked(request, context))
            except RequestError as error:
                return _Asked(request.user_id, error)
        call = owner.recommendations.Recommend(request, timeout=part_s(context), wait_for_ready=True)
        return _Asked(request.user_id, asyncio.ensure_future(passed_on(owner, call)))

    async def _streamed(self, asked: "_Asked") -> bytes:
        try:
            answer = asked.answer if isinstance(asked.answer, RequestError) else await asked.answer
        except RequestError as error:
            answer = error
        if isinstance(answer, RequestError):
            return pb.StreamRecommendResponse(error=error_message(answer)).SerializeToString()
        if isinstance(answer, pb.RecommendResponse):
            return outcome_of(answer.SerializeToString())
        return outcome_of(self._response(asked.user_id, answer))

    def _asked(self, request: pb.RecommendRequest, context: Any) -> "asyncio.Future[Timed[Answer]]":
        return self._engine.recommend(self._question(request), client=caller(context), deadline_s=_deadline_s(context))

    async def _pass_on(
        self,
        peer: Peer,
        request: pb.BatchRecommendRequest,
        places: list[int],
        timeout_s: float,
        results: list[bytes],
    ) -> None:
        part = pb.BatchRecommendRequest(requests=[request.requests[place] for place in places])
        try:
            answered = await peer.recommendations.BatchRecommend(part, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            failed = _failed(relayed(peer, error))
            for place in places:
                results[place] = failed
            return
        for place, result in zip(places, answered.results, strict=True):
            results[place] = result.SerializeToString()

    def _response(self, user_id: str, timed: Timed[Answer]) -> bytes:
        self._note(user_id, timed.result)
        return encode_response(timed.result, (timed.queue_ns, timed.work_ns))

    def _note(self, user_id: str, answer: Answer) -> None:
        if self._engine.learning is not None:
            self._engine.learning.note(answer.request_id, user_id, answer)

    def _question(self, request: pb.RecommendRequest) -> Question:
        rules = None
        if request.HasField("list_rules"):
            rules = merged_rules(request.list_rules, self._engine.answerer.rules)
        admitted = item_filter(request.filter) if request.HasField("filter") else None
        return to_question(request, rules, admitted)


def _deadline_s(context: Any) -> float:
    """The caller's deadline on the clock of time.monotonic()."""
    remaining = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + float(remaining)


class _Asked(NamedTuple):
    """A question of a stream and its answer to be (a timed Answer of this shard, the response of another), or why there
    is none.
    """

    user_id: str
    answer: "asyncio.Future[Any] | RequestError"


def merged_rules(message: pb.ListRules, defaults: ListRules) -> ListRules:
    """The rules of a request, with those of the server where it says nothing."""
    said = {field.name: value for field, value in message.ListFields()}
    return defaults._replace(**said)


def to_question(request: pb.RecommendRequest, rules: ListRules | None, admitted: ItemFilter | None) -> Question:
    return Question(
        request.user_id,
        request.count,
        request.seen_policy == pb.SEEN_POLICY_INCLUDE,
        request.excluded_item_ids,
        request.version_token,
        request.explain,
        request.request_time.ToNanoseconds() / 1e9 if request.HasField("request_time") else None,
        rules,
        admitted,
    )


def _failed(error: RequestError) -> bytes:
    return pb.BatchRecommendResult(error=error_message(error)).SerializeToString()


def error_message(error: RequestError) -> pb.Error:
    """The error of one element of a batch or stream."""
    return pb.Error(reason=error.reason, message=error.message, metadata=error.metadata)
