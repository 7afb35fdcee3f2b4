"""A server of the contract that fits a test: two shards in memory, with failures on demand.

It keeps events per user and counts each event id once, as the contract says; recommendations are the user's
items, newest first. Everything else about it is fixed, so that what a client does can be seen.
"""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from heliotrope.shard_map import slot_of
from heliotrope.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    profile_pb2,
    profile_pb2_grpc,
    recommendation_pb2,
    recommendation_pb2_grpc,
)

SLOTS = 16


@dataclass
class Shard:
    """What one shard holds and was asked; `failures` are answered first, one per call."""

    events: dict[str, dict[str, event_pb2.Event]] = field(default_factory=lambda: defaultdict(dict))
    feedback: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    failures: list[status_pb2.Status] = field(default_factory=list)
    status: admin_pb2.GetServingStatusResponse = field(default_factory=admin_pb2.GetServingStatusResponse)
    address: str = ""


def failure(
    code: grpc.StatusCode, reason: str = "", *, retry_after_s: float | None = None, **metadata: str
) -> status_pb2.Status:
    """A status as the server sends it, with ErrorInfo and RetryInfo."""
    status = status_pb2.Status(code=code.value[0], message=f"{code.name} on demand")
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="heliotrope", metadata=metadata)
        status.details.add().Pack(info)
    if retry_after_s is not None:
        delay = Duration(nanos=int(retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


@contextmanager
def toy_server(
    shard_count: int = 2, credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1"
) -> Iterator[list[Shard]]:
    """Serves each shard on a free port of its own; the first is the entry."""
    shards = [Shard() for _ in range(shard_count)]
    servers = []
    for shard in shards:
        server = grpc.server(ThreadPoolExecutor(max_workers=8))
        toy = ToyServicer(shard)
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(toy, server)
        event_pb2_grpc.add_EventServiceServicer_to_server(toy, server)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(toy, server)
        profile_pb2_grpc.add_ProfileServiceServicer_to_server(toy, server)
        catalog_pb2_grpc.add_CatalogServiceServicer_to_server(toy, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(toy, server)
        port = (
            server.add_secure_port(f"{host}:0", credentials) if credentials else server.add_insecure_port(f"{host}:0")
        )
        shard.address = f"{host}:{port}"
        server.start()
        servers.append(server)
    publish_map(shards, [shard.address for shard in shards])
    try:
        yield shards
    finally:
        for server in servers:
            server.stop(None).wait()


def publish_map(shards: list[Shard], addresses: list[str]) -> None:
    """Makes every shard report equal slot ranges at these addresses."""
    share = SLOTS // len(addresses)
    status = admin_pb2.GetServingStatusResponse(
        slot_count=SLOTS,
        shards=[
            admin_pb2.ShardStatus(
                shard_index=index,
                address=address,
                first_slot=index * share,
                end_slot=(index + 1) * share,
                reachable=True,
            )
            for index, address in enumerate(addresses)
        ],
    )
    for shard in shards:
        shard.status.CopyFrom(status)


def owner(user_id: str, shard_count: int = 2) -> int:
    """Index of the shard that owns a user under `publish_map`."""
    return slot_of(user_id, SLOTS) // (SLOTS // shard_count)


class ToyServicer(
    recommendation_pb2_grpc.RecommendationServiceServicer,
    event_pb2_grpc.EventServiceServicer,
    feedback_pb2_grpc.FeedbackServiceServicer,
    profile_pb2_grpc.ProfileServiceServicer,
    catalog_pb2_grpc.CatalogServiceServicer,
    admin_pb2_grpc.AdminServiceServicer,
):
    """All six services of one shard."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def _enter(self, method: str, context: Any, *users: str) -> None:
        self.shard.calls.append((method, users))
        if self.shard.failures:
            context.abort_with_status(rpc_status.to_status(self.shard.failures.pop(0)))

    def _answer(
        self, request: recommendation_pb2.RecommendRequest
    ) -> recommendation_pb2.RecommendResponse | recommendation_pb2.Error:
        if not 1 <= request.count <= 1_000:
            return recommendation_pb2.Error(
                reason="INVALID_COUNT",
                message=f"count must be 1 to 1000, not {request.count}",
                metadata={"limit": "1000"},
            )
        items = [event.item_id for event in self.shard.events[request.user_id].values()]
        return recommendation_pb2.RecommendResponse(
            request_id=request.user_id,
            recommendations=[recommendation_pb2.Recommendation(item_id=item) for item in items[::-1][: request.count]],
        )

    def _record(self, request: Any) -> event_pb2.RecordEventsResponse:
        results = []
        for event in request.events:
            known = self.shard.events[event.user_id]
            if event.item_id == "unknown":
                error = recommendation_pb2.Error(reason="ITEM_NOT_FOUND", message="no such item")
                outcome = event_pb2.EVENT_OUTCOME_REJECTED
            else:
                error = None
                outcome = (
                    event_pb2.EVENT_OUTCOME_DUPLICATE if event.event_id in known else event_pb2.EVENT_OUTCOME_RECORDED
                )
                known[event.event_id] = event
            results.append(event_pb2.EventResult(event_id=event.event_id, outcome=outcome, error=error))
        return event_pb2.RecordEventsResponse(results=results, version_token=f"token@{self.shard.address}")

    def Recommend(self, request: Any, context: Any) -> Any:
        self._enter("Recommend", context, request.user_id)
        answer = self._answer(request)
        if isinstance(answer, recommendation_pb2.Error):
            status = failure(grpc.StatusCode.INVALID_ARGUMENT, answer.reason, **answer.metadata)
            context.abort_with_status(rpc_status.to_status(status))
        return answer

    def Explain(self, request: Any, context: Any) -> Any:
        self._enter("Explain", context, request.request.user_id)
        items = [recommendation_pb2.ItemExplanation(item_id=item_id) for item_id in request.item_ids]
        return recommendation_pb2.ExplainResponse(items=items, eligible_count=request.request.count)

    def BatchRecommend(self, request: Any, context: Any) -> Any:
        self._enter("BatchRecommend", context, *(one.user_id for one in request.requests))
        response = recommendation_pb2.BatchRecommendResponse()
        for one in request.requests:
            answer = self._answer(one)
            if isinstance(answer, recommendation_pb2.Error):
                response.results.add(error=answer)
            else:
                response.results.add(response=answer)
        return response

    def StreamRecommend(self, request_iterator: Any, context: Any) -> Any:
        self._enter("StreamRecommend", context)
        for one in request_iterator:
            answer = self._answer(one.request)
            if isinstance(answer, recommendation_pb2.Error):
                yield recommendation_pb2.StreamRecommendResponse(error=answer)
            else:
                yield recommendation_pb2.StreamRecommendResponse(response=answer)

    def RecordEvents(self, request: Any, context: Any) -> Any:
        users = tuple(event.user_id for event in request.events)
        lost_reply = bool(self.shard.failures) and self.shard.failures[0].message == "reply lost"
        reply = self._record(request) if lost_reply else None
        self._enter("RecordEvents", context, *users)
        return reply or self._record(request)

    def StreamEvents(self, request_iterator: Any, context: Any) -> Any:
        self._enter("StreamEvents", context)
        for batch in request_iterator:
            if not batch.events:
                error = recommendation_pb2.Error(reason="INVALID_BATCH_SIZE", message="no events")
                yield event_pb2.StreamEventsResponse(error=error)
            else:
                yield event_pb2.StreamEventsResponse(response=self._record(batch))

    def RecordFeedback(self, request: Any, context: Any) -> Any:
        self._enter("RecordFeedback", context, request.user_id)
        known = self.shard.feedback[request.request_id]
        fresh = [item for item in request.items if item.item_id not in known]
        known.update({item.item_id: item.reward for item in fresh})
        return feedback_pb2.RecordFeedbackResponse(
            recorded_count=len(fresh), duplicate_count=len(request.items) - len(fresh)
        )

    def GetProfile(self, request: Any, context: Any) -> Any:
        self._enter("GetProfile", context, request.user_id)
        count = len(self.shard.events[request.user_id])
        profile = profile_pb2.Profile(user_id=request.user_id, remembered_event_count=count)
        return profile_pb2.GetProfileResponse(profile=profile)

    def UpdateProfile(self, request: Any, context: Any) -> Any:
        self._enter("UpdateProfile", context, request.user_id)
        profile = profile_pb2.Profile(user_id=request.user_id, declared_interests=request.declared_interests)
        return profile_pb2.UpdateProfileResponse(profile=profile)

    def DeleteProfile(self, request: Any, context: Any) -> Any:
        self._enter("DeleteProfile", context, request.user_id)
        held = self.shard.events.pop(request.user_id, {})
        return profile_pb2.DeleteProfileResponse(deleted_event_count=len(held))

    def ExportProfile(self, request: Any, context: Any) -> Any:
        self._enter("ExportProfile", context, request.user_id)
        yield profile_pb2.ExportProfileResponse(profile=profile_pb2.Profile(user_id=request.user_id))
        for event in self.shard.events[request.user_id].values():
            yield profile_pb2.ExportProfileResponse(event=event)

    def UpsertItems(self, request: Any, context: Any) -> Any:
        self._enter("UpsertItems", context)
        return catalog_pb2.UpsertItemsResponse(created_count=len(request.items))

    def DeleteItems(self, request: Any, context: Any) -> Any:
        self._enter("DeleteItems", context)
        return catalog_pb2.DeleteItemsResponse(deleted_count=len(request.item_ids))

    def GetItem(self, request: Any, context: Any) -> Any:
        self._enter("GetItem", context)
        return catalog_pb2.GetItemResponse(item=catalog_pb2.Item(item_id=request.item_id))

    def ListItems(self, request: Any, context: Any) -> Any:
        self._enter("ListItems", context)
        start = int(request.page_token or 0)
        end = min(start + request.page_size, 5)
        return catalog_pb2.ListItemsResponse(
            items=[catalog_pb2.Item(item_id=str(number)) for number in range(start, end)],
            next_page_token=str(end) if end < 5 else "",
        )

    def SearchItems(self, request: Any, context: Any) -> Any:
        self._enter("SearchItems", context)
        item = catalog_pb2.Item(item_id="m1", title=request.query)
        return catalog_pb2.SearchItemsResponse(matches=[catalog_pb2.ItemMatch(item=item, similarity=1.0)])

    def GetServingStatus(self, request: Any, context: Any) -> Any:
        self.shard.calls.append(("GetServingStatus", ()))
        return self.shard.status

    def ListSnapshots(self, request: Any, context: Any) -> Any:
        self._enter("ListSnapshots", context)
        return admin_pb2.ListSnapshotsResponse(snapshots=[admin_pb2.SnapshotSummary(snapshot_version="v1")])

    def ActivateSnapshot(self, request: Any, context: Any) -> Any:
        self._enter("ActivateSnapshot", context)
        return admin_pb2.ActivateSnapshotResponse(snapshot_version=request.snapshot_version)

    def RollBackSnapshot(self, request: Any, context: Any) -> Any:
        self._enter("RollBackSnapshot", context)
        return admin_pb2.RollBackSnapshotResponse(snapshot_version="v0")

    def RollBackWeights(self, request: Any, context: Any) -> Any:
        self._enter("RollBackWeights", context)
        return admin_pb2.RollBackWeightsResponse(weights_version=2, withdrawn_weights_version=3)
