"""The calls that a client can make: Python arguments in, request messages out.

`Client` and `AsyncClient` send the same calls; only how they wait differs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from heliotrope.connection import AsyncStubs, Stubs
from heliotrope.errors import ServerError, from_element
from heliotrope.event import Event, EventTypeName, Time, new_event_id, to_timestamp
from heliotrope.v1 import admin_pb2, catalog_pb2, event_pb2, feedback_pb2, profile_pb2, recommendation_pb2
from heliotrope.v1.filter_pb2 import ItemFilter

MAX_BATCH_USERS = 256
MAX_BATCH_EVENTS = 1_000

SeenPolicyName = Literal["exclude", "include"]
Part = TypeVar("Part")
Reply = TypeVar("Reply")


class ListRules(TypedDict, total=False):
    """Rules for a list as a whole; see heliotrope.v1.ListRules. What is left out has the server's value."""

    diversity: float
    relevance_floor: float
    max_per_category: int
    max_provider_share: float
    explore_share: float


@dataclass(frozen=True, slots=True)
class Call(Generic[Reply]):
    """One call before it is sent.

    `method` picks the method off the stubs of a channel; `user_id` is whose owner to call, None for any
    shard; `idempotent` says that doing it twice is doing it once; `reply` is the type of the answer.
    """

    method: Callable[[Stubs | AsyncStubs], Any]
    request: Message
    reply: type[Reply]
    user_id: str | None = None
    idempotent: bool = True


@dataclass(frozen=True, slots=True)
class EventReceipt:
    """The acknowledgement of a batch: every event whose outcome is not REJECTED is on disk.

    `results` is in the order of the events.
    """

    results: tuple[event_pb2.EventResult, ...]
    version_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def rejected(self) -> list[event_pb2.EventResult]:
        """The results of the refused events; each has an `error`."""
        return [result for result in self.results if result.outcome == event_pb2.EVENT_OUTCOME_REJECTED]

    def version_token(self, user_id: str) -> str:
        """Name it in `recommend` to read this user's writes; empty when nothing of the user was recorded."""
        return self.version_tokens.get(user_id, "")


def recommend_request(
    user: str | recommendation_pb2.RecommendRequest,
    *,
    count: int = 10,
    seen: SeenPolicyName = "exclude",
    excluded_item_ids: Iterable[str] = (),
    version_token: str = "",
    explain: bool = False,
    request_time: Time | None = None,
    filter: ItemFilter | None = None,
    **rules: Unpack[ListRules],
) -> recommendation_pb2.RecommendRequest:
    """One question. A message is passed through as it is.

    Raises ValueError for an unknown seen policy and TypeError for an unknown rule.
    """
    unknown = rules.keys() - ListRules.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    if isinstance(user, recommendation_pb2.RecommendRequest):
        return user
    try:
        seen_policy = recommendation_pb2.SeenPolicy.Value(f"SEEN_POLICY_{seen.upper()}")
    except ValueError:
        raise ValueError(f"seen must be 'exclude' or 'include', not {seen!r}") from None
    return recommendation_pb2.RecommendRequest(
        user_id=user,
        count=count,
        seen_policy=seen_policy,
        excluded_item_ids=excluded_item_ids,
        version_token=version_token,
        explain=explain,
        request_time=to_timestamp(request_time),
        list_rules=recommendation_pb2.ListRules(**rules) if rules else None,
        filter=filter,
    )


def recommend(request: recommendation_pb2.RecommendRequest) -> Call[recommendation_pb2.RecommendResponse]:
    return Call(
        lambda stubs: stubs.recommendation.Recommend,
        request,
        recommendation_pb2.RecommendResponse,
        user_id=request.user_id,
    )


def explain(
    request: recommendation_pb2.RecommendRequest, item_ids: Iterable[str], counterfactual_count: int | None
) -> Call[recommendation_pb2.ExplainResponse]:
    return Call(
        lambda stubs: stubs.recommendation.Explain,
        recommendation_pb2.ExplainRequest(
            request=request, item_ids=item_ids, counterfactual_count=counterfactual_count
        ),
        recommendation_pb2.ExplainResponse,
        user_id=request.user_id,
    )


def recommend_batch(
    requests: Sequence[recommendation_pb2.RecommendRequest],
) -> Call[recommendation_pb2.BatchRecommendResponse]:
    """A batch that one shard owns: it goes where its first user belongs."""
    return Call(
        lambda stubs: stubs.recommendation.BatchRecommend,
        recommendation_pb2.BatchRecommendRequest(requests=requests),
        recommendation_pb2.BatchRecommendResponse,
        user_id=requests[0].user_id,
    )


def answer(
    result: recommendation_pb2.BatchRecommendResult | recommendation_pb2.StreamRecommendResponse,
) -> recommendation_pb2.RecommendResponse | ServerError:
    """The answer to one question of a batch or a stream, or why there is none."""
    return result.response if result.HasField("response") else from_element(result.error)


def in_order(groups: Sequence[Sequence[int]], parts: Sequence[Sequence[Part]]) -> list[Part]:
    """What `Router.split` cut apart, put back into the order of the positions."""
    placed: dict[int, Part] = {}
    for positions, part in zip(groups, parts, strict=True):
        placed.update(zip(positions, part, strict=True))
    return [placed[position] for position in range(len(placed))]


def one_event(
    user_id: str,
    item_id: str,
    type: EventTypeName,
    value: float | None,
    time: Time | None,
    event_id: str | None,
) -> Event:
    """An event with the id that is given, or a new one."""
    return Event(user_id, item_id, type, value, time, new_event_id() if event_id is None else event_id)


def record_events(events: Sequence[Event], *, history_import: bool) -> Call[event_pb2.RecordEventsResponse]:
    """A batch that one shard owns. Idempotent: the server counts an event id once."""
    return Call(
        lambda stubs: stubs.event.RecordEvents,
        event_pb2.RecordEventsRequest(events=[event.to_proto() for event in events], history_import=history_import),
        event_pb2.RecordEventsResponse,
        user_id=events[0].user_id,
    )


def receipt(events: Sequence[Event], response: event_pb2.RecordEventsResponse) -> EventReceipt:
    """The acknowledgement of `events`, with the token under each user that has a recorded event."""
    tokens = {
        event.user_id: response.version_token
        for event, result in zip(events, response.results, strict=True)
        if result.outcome != event_pb2.EVENT_OUTCOME_REJECTED
    }
    return EventReceipt(tuple(response.results), tokens)


def merge_receipts(groups: Sequence[Sequence[int]], receipts: Sequence[EventReceipt]) -> EventReceipt:
    """One receipt from those of the groups into which `Router.split` cut a batch."""
    tokens: dict[str, str] = {}
    for part in receipts:
        tokens.update(part.version_tokens)
    return EventReceipt(tuple(in_order(groups, [part.results for part in receipts])), tokens)


def stream_events_request(events: Sequence[Event], *, history_import: bool) -> event_pb2.StreamEventsRequest:
    return event_pb2.StreamEventsRequest(events=[event.to_proto() for event in events], history_import=history_import)


def stream_receipt(events: Sequence[Event], reply: event_pb2.StreamEventsResponse) -> EventReceipt | ServerError:
    """The acknowledgement of one batch on a stream, or why it was refused as a whole."""
    return receipt(events, reply.response) if reply.HasField("response") else from_element(reply.error)


def record_feedback(
    user_id: str, request_id: str, rewards: Mapping[str, float]
) -> Call[feedback_pb2.RecordFeedbackResponse]:
    """Idempotent: the server counts each item of an answer once."""
    items = [feedback_pb2.ItemFeedback(item_id=item_id, reward=reward) for item_id, reward in rewards.items()]
    return Call(
        lambda stubs: stubs.feedback.RecordFeedback,
        feedback_pb2.RecordFeedbackRequest(user_id=user_id, request_id=request_id, items=items),
        feedback_pb2.RecordFeedbackResponse,
        user_id=user_id,
    )


def get_profile(user_id: str, read_time: Time | None) -> Call[profile_pb2.GetProfileResponse]:
    request = profile_pb2.GetProfileRequest(user_id=user_id, read_time=to_timestamp(read_time))
    return Call(lambda stubs: stubs.profile.GetProfile, request, profile_pb2.GetProfileResponse, user_id=user_id)


def update_profile(
    user_id: str, declared_interests: Iterable[str] | None, segments: Iterable[str] | None
) -> Call[profile_pb2.UpdateProfileResponse]:
    """What is None is left as it is. Raises ValueError when both are."""
    given = {"declared_interests": declared_interests, "segments": segments}
    paths = [name for name, value in given.items() if value is not None]
    if not paths:
        raise ValueError("give declared_interests, segments or both")
    return Call(
        lambda stubs: stubs.profile.UpdateProfile,
        profile_pb2.UpdateProfileRequest(
            user_id=user_id,
            declared_interests=declared_interests or (),
            segments=segments or (),
            update_mask=FieldMask(paths=paths),
        ),
        profile_pb2.UpdateProfileResponse,
        user_id=user_id,
        idempotent=False,
    )


def delete_profile(user_id: str) -> Call[profile_pb2.DeleteProfileResponse]:
    return Call(
        lambda stubs: stubs.profile.DeleteProfile,
        profile_pb2.DeleteProfileRequest(user_id=user_id),
        profile_pb2.DeleteProfileResponse,
        user_id=user_id,
        idempotent=False,
    )


def upsert_items(items: Iterable[catalog_pb2.Item]) -> Call[catalog_pb2.UpsertItemsResponse]:
    return Call(
        lambda stubs: stubs.catalog.UpsertItems,
        catalog_pb2.UpsertItemsRequest(items=items),
        catalog_pb2.UpsertItemsResponse,
        idempotent=False,
    )


def delete_items(item_ids: Iterable[str]) -> Call[catalog_pb2.DeleteItemsResponse]:
    return Call(
        lambda stubs: stubs.catalog.DeleteItems,
        catalog_pb2.DeleteItemsRequest(item_ids=item_ids),
        catalog_pb2.DeleteItemsResponse,
        idempotent=False,
    )


def get_item(item_id: str) -> Call[catalog_pb2.GetItemResponse]:
    request = catalog_pb2.GetItemRequest(item_id=item_id)
    return Call(lambda stubs: stubs.catalog.GetItem, request, catalog_pb2.GetItemResponse)


def list_items(page_size: int, page_token: str) -> Call[catalog_pb2.ListItemsResponse]:
    request = catalog_pb2.ListItemsRequest(page_size=page_size, page_token=page_token)
    return Call(lambda stubs: stubs.catalog.ListItems, request, catalog_pb2.ListItemsResponse)


def search_items(query: str, count: int) -> Call[catalog_pb2.SearchItemsResponse]:
    request = catalog_pb2.SearchItemsRequest(query=query, count=count)
    return Call(lambda stubs: stubs.catalog.SearchItems, request, catalog_pb2.SearchItemsResponse)


def get_serving_status() -> Call[admin_pb2.GetServingStatusResponse]:
    request = admin_pb2.GetServingStatusRequest()
    return Call(lambda stubs: stubs.admin.GetServingStatus, request, admin_pb2.GetServingStatusResponse)


def list_snapshots() -> Call[admin_pb2.ListSnapshotsResponse]:
    request = admin_pb2.ListSnapshotsRequest()
    return Call(lambda stubs: stubs.admin.ListSnapshots, request, admin_pb2.ListSnapshotsResponse)


def activate_snapshot(snapshot_version: str) -> Call[admin_pb2.ActivateSnapshotResponse]:
    return Call(
        lambda stubs: stubs.admin.ActivateSnapshot,
        admin_pb2.ActivateSnapshotRequest(snapshot_version=snapshot_version),
        admin_pb2.ActivateSnapshotResponse,
        idempotent=False,
    )


def roll_back_snapshot() -> Call[admin_pb2.RollBackSnapshotResponse]:
    return Call(
        lambda stubs: stubs.admin.RollBackSnapshot,
        admin_pb2.RollBackSnapshotRequest(),
        admin_pb2.RollBackSnapshotResponse,
        idempotent=False,
    )


def roll_back_weights() -> Call[admin_pb2.RollBackWeightsResponse]:
    return Call(
        lambda stubs: stubs.admin.RollBackWeights,
        admin_pb2.RollBackWeightsRequest(),
        admin_pb2.RollBackWeightsResponse,
        idempotent=False,
    )
