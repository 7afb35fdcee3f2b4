"""RecommendationService."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope.v1 import recommendation_pb2_grpc
from heliotrope_server.answerer import Answer, Question
from heliotrope_server.engine import Engine
from heliotrope_server.errors import InvalidArgumentError, RequestError
from heliotrope_server.list_rules import ListRules
from heliotrope_server.peers import Peer
from heliotrope_server.servicers.routing import Router, passed_on, relayed, remaining_s

MAX_BATCH = 256


class RecommendationServicer(recommendation_pb2_grpc.RecommendationServiceServicer):
    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router

    async def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        owner = self._router.owner(request.user_id)
        if owner is not None:
            return await passed_on(
                owner, owner.recommendations.Recommend(request, timeout=remaining_s(context), wait_for_ready=True)
            )
        remaining = context.time_remaining()
        deadline_s = float("inf") if remaining is None else time.monotonic() + remaining
        timed = await self._engine.recommend(self._question(request), deadline_s=deadline_s)
        response = self._response(request.user_id, timed.result)
        response.timings.queue_ns = timed.queue_ns
        response.timings.search_ns = timed.work_ns
        return response

    async def BatchRecommend(self, request: pb.BatchRecommendRequest, context: Any) -> pb.BatchRecommendResponse:
        size = len(request.requests)
        if not 1 <= size <= MAX_BATCH:
            raise InvalidArgumentError(
                "INVALID_BATCH_SIZE",
                f"a batch holds 1 to {MAX_BATCH} requests, not {size}",
                value=size,
                limit=MAX_BATCH,
            )
        results: list[pb.BatchRecommendResult] = [pb.BatchRecommendResult()] * size
        own, foreign = self._router.split(single.user_id for single in request.requests)
        passing = [
            asyncio.create_task(self._pass_on(peer, request, places, remaining_s(context), results))
            for peer, places in foreign
        ]
        outcomes = await self._engine.recommend_many([self._question(request.requests[place]) for place in own])
        for place, outcome in zip(own, outcomes, strict=True):
            if isinstance(outcome, RequestError):
                results[place] = pb.BatchRecommendResult(error=error_message(outcome))
            else:
                results[place] = pb.BatchRecommendResult(
                    response=self._response(request.requests[place].user_id, outcome)
                )
        await asyncio.gather(*passing)
        return pb.BatchRecommendResponse(results=results)

    async def StreamRecommend(
        self, request_iterator: AsyncIterator[pb.StreamRecommendRequest], context: Any
    ) -> AsyncIterator[pb.StreamRecommendResponse]:
        async for message in request_iterator:
            try:
                response = await self.Recommend(message.request, context)
                yield pb.StreamRecommendResponse(response=response)
            except RequestError as error:
                yield pb.StreamRecommendResponse(error=error_message(error))

    async def _pass_on(
        self,
        peer: Peer,
        request: pb.BatchRecommendRequest,
        places: list[int],
        timeout_s: float,
        results: list[pb.BatchRecommendResult],
    ) -> None:
        part = pb.BatchRecommendRequest(requests=[request.requests[place] for place in places])
        try:
            answered = await peer.recommendations.BatchRecommend(part, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            for place in places:
                results[place] = pb.BatchRecommendResult(error=error_message(relayed(peer, error)))
            return
        for place, result in zip(places, answered.results, strict=True):
            results[place] = result

    def _response(self, user_id: str, answer: Answer) -> pb.RecommendResponse:
        response = pb.RecommendResponse(
            request_id=answer.request_id,
            snapshot_version=answer.snapshot_version,
            profile_version=answer.profile_version,
        )
        if self._engine.learning is not None:
            self._engine.learning.note(response.request_id, user_id, answer)
        add = response.recommendations.add
        for item_id, score, probability, source in zip(
            answer.item_ids, answer.scores, answer.probabilities, answer.sources, strict=True
        ):
            add(item_id=item_id, score=score, probability=probability, source=source)
        # Only the last place is ever drawn.
        if answer.propensities and answer.propensities[-1] < 1.0:
            for recommendation, propensity in zip(response.recommendations, answer.propensities, strict=True):
                recommendation.propensity = propensity
        for recommendation, parts in zip(response.recommendations, answer.explanations, strict=False):
            for part in parts:
                recommendation.explanation.add(
                    kind=part.kind,
                    value=part.value,
                    event_id=part.event_id,
                    item_id=part.item_id,
                )
        return response

    def _question(self, request: pb.RecommendRequest) -> Question:
        rules = None
        if request.HasField("list_rules"):
            rules = merged_rules(request.list_rules, self._engine.answerer.rules)
        return to_question(request, rules)


def merged_rules(message: pb.ListRules, defaults: ListRules) -> ListRules:
    """The rules of a request, with those of the server where it says nothing."""
    said = {field.name: value for field, value in message.ListFields()}
    return defaults._replace(**said)


def to_question(request: pb.RecommendRequest, rules: ListRules | None) -> Question:
    return Question(
        request.user_id,
        request.count,
        request.seen_policy == pb.SEEN_POLICY_INCLUDE,
        request.excluded_item_ids,
        request.version_token,
        request.explain,
        request.request_time.ToNanoseconds() / 1e9 if request.HasField("request_time") else None,
        rules,
    )


def error_message(error: RequestError) -> pb.Error:
    """The error of one element of a batch or stream."""
    return pb.Error(reason=error.reason, message=error.message, metadata=error.metadata)
