"""FeedbackService."""

import math
from typing import Any

from heliotrope.v1 import feedback_pb2 as pb
from heliotrope.v1 import feedback_pb2_grpc
from heliotrope_server.engine import Engine
from heliotrope_server.errors import FeedbackOffError, InvalidArgumentError
from heliotrope_server.event import check_id
from heliotrope_server.learning.impression import MAX_PLACES
from heliotrope_server.servicers.routing import Router, part_s, passed_on


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, context: Any) -> pb.RecordFeedbackResponse:
        owner = self._router.owner(request.user_id)
        if owner is not None:
            call = owner.feedback.RecordFeedback(request, timeout=part_s(context), wait_for_ready=True)
            return await passed_on(owner, call)
        learning = self._engine.learning
        if learning is None:
            raise FeedbackOffError(
                "FEEDBACK_OFF",
                "this server neither learns nor logs: start it with --learn-online or --impression-log-share",
            )
        check_id("user_id", request.user_id)
        rewards = checked_rewards(request)
        judgement = learning.feedback(request.user_id, request.request_id, rewards)
        return pb.RecordFeedbackResponse(
            recorded_count=len(judgement.places) - judgement.implied,
            duplicate_count=len(request.items) - len(judgement.places) + judgement.implied,
            implied_count=judgement.implied,
        )


def checked_rewards(request: pb.RecordFeedbackRequest) -> dict[str, float]:
    """The rewards by item, the first where an item is named twice. Raises InvalidArgumentError."""
    size = len(request.items)
    if not 1 <= size <= MAX_PLACES:
        raise InvalidArgumentError(
            "INVALID_BATCH_SIZE",
            f"feedback names 1 to {MAX_PLACES} items, not {size}",
            value=size,
            limit=MAX_PLACES,
        )
    rewards: dict[str, float] = {}
    for item in request.items:
        if not (math.isfinite(item.reward) and 0.0 <= item.reward <= 1.0):
            raise InvalidArgumentError(
                "INVALID_REWARD", f"a reward must be from 0 to 1, not {item.reward}", value=item.reward, limit=1.0
            )
        rewards.setdefault(item.item_id, item.reward)
    return rewards
