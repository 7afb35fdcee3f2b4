"""The asyncio client of a Heliotrope server."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from heliotrope import call as calls
from heliotrope.call import MAX_BATCH_EVENTS, MAX_BATCH_USERS, Call, EventReceipt, ListRules, SeenPolicyName
from heliotrope.connection import (
    CONNECT_TIMEOUT_S,
    AsyncStubs,
    Tls,
    Token,
    channel_options,
    check_address,
    token_metadata,
)
from heliotrope.errors import ServerError, UnavailableError, UnsupportedError, from_element, from_rpc_error
from heliotrope.event import Event, EventTypeName, Time
from heliotrope.retry import Attempts, RetryPolicy
from heliotrope.shard_map import Router
from heliotrope.v1 import admin_pb2, catalog_pb2, event_pb2, feedback_pb2, profile_pb2, recommendation_pb2
from heliotrope.v1.filter_pb2 import ItemFilter

Part = TypeVar("Part")
Reply = TypeVar("Reply")


class AsyncClient:
    """Calls a Heliotrope server from asyncio; belongs to the event loop that first uses it.

    Every call has a deadline (`timeout_s`, over all attempts). Reads and `record_events` are retried when the
    server is unavailable, every call when it is overloaded and says when to come back. Calls about a user
    go to the shard that owns the user, or through `address` where a shard can't be reached directly.

    Failures raise a `heliotrope.errors.ServerError`.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        timeout_s: float = 10.0,
        retry: RetryPolicy | None = None,
        direct: bool = True,
    ) -> None:
        """Connects when first used. `direct=False` sends everything through `address`.

        `token` goes with every call; a function is asked for it each time, so that it can be renewed.
        Raises ConnectionSettingsError for an address that is not HOST:PORT or an unusable TLS file.
        """
        self._router = Router(check_address(address), direct=direct)
        self._credentials = tls.credentials() if tls else None
        self._options = channel_options(address, tls)
        self._token = token_metadata(token)
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._stubs: dict[str, AsyncStubs] = {}
        self._connecting: dict[str, asyncio.Task[AsyncStubs]] = {}

    async def recommend(
        self,
        user_id: str,
        *,
        count: int = 10,
        seen: SeenPolicyName = "exclude",
        excluded_item_ids: Iterable[str] = (),
        version_token: str = "",
        explain: bool = False,
        request_time: Time | None = None,
        filter: ItemFilter | None = None,
        timeout_s: float | None = None,
        **rules: Unpack[ListRules],
    ) -> recommendation_pb2.RecommendResponse:
        """The best `count` items for a user; an unknown user gets what the population likes.

        `filter` says which items to choose among: `item_filter(category_in("Comedy"), number_range("price", max=20))`.
        `rules` shape the list as a whole: `diversity`, `max_per_category`, ..., see heliotrope.v1.ListRules.
        """
        request = calls.recommend_request(
            user_id,
            count=count,
            seen=seen,
            excluded_item_ids=excluded_item_ids,
            version_token=version_token,
            explain=explain,
            request_time=request_time,
            filter=filter,
            **rules,
        )
        return await self._run(calls.recommend(request), timeout_s)

    async def explain(
        self,
        user: str | recommendation_pb2.RecommendRequest,
        item_ids: Iterable[str] = (),
        *,
        count: int = 10,
        counterfactuals: int | None = None,
        timeout_s: float | None = None,
    ) -> recommendation_pb2.ExplainResponse:
        """Explains what would be recommended, or items that would not: contributions, exact ranks over the whole
        catalogue, what would be without single events, and why an item is not in the list.

        `user` is an id, asked for with `count`, or a whole RecommendRequest. `counterfactuals` is for how many events
        of each item; None: 3 for up to 10 items. Raises NotFoundError for an item that the server does not have.
        """
        request = calls.recommend_request(user, count=count)
        return await self._run(calls.explain(request, item_ids, counterfactuals), timeout_s)

    async def recommend_batch(
        self,
        users: Iterable[str | recommendation_pb2.RecommendRequest],
        *,
        count: int = 10,
        seen: SeenPolicyName = "exclude",
        explain: bool = False,
        request_time: Time | None = None,
        filter: ItemFilter | None = None,
        timeout_s: float | None = None,
        **rules: Unpack[ListRules],
    ) -> list[recommendation_pb2.RecommendResponse | ServerError]:
        """Answers for many users, in their order, any number; a refused one is an error in its place.

        A user is an id, asked for with the other arguments, or a whole RecommendRequest.
        """
        requests = [
            calls.recommend_request(
                user, count=count, seen=seen, explain=explain, request_time=request_time, filter=filter, **rules
            )
            for user in users
        ]
        await self._learn_shard_map()
        groups = self._router.split((request.user_id for request in requests), MAX_BATCH_USERS)

        async def ask(positions: list[int]) -> list[recommendation_pb2.RecommendResponse | ServerError]:
            batch = [requests[position] for position in positions]
            reply = await self._run(calls.recommend_batch(batch), timeout_s)
            return [calls.answer(result) for result in reply.results]

        return calls.in_order(groups, await self._in_parallel(ask, groups))

    async def recommend_stream(
        self,
        users: Iterable[str | recommendation_pb2.RecommendRequest]
        | AsyncIterable[str | recommendation_pb2.RecommendRequest],
        *,
        count: int = 10,
        explain: bool = False,
        filter: ItemFilter | None = None,
        timeout_s: float = 600.0,
    ) -> AsyncIterator[recommendation_pb2.RecommendResponse | ServerError]:
        """Asks on one stream and yields the answers in order; `timeout_s` bounds the whole stream."""
        requests = (
            recommendation_pb2.StreamRecommendRequest(
                request=calls.recommend_request(user, count=count, explain=explain, filter=filter)
            )
            async for user in _each(users)
        )
        stubs = await self._stubs_of(self._router.entry)
        try:
            async for reply in stubs.recommendation.StreamRecommend(
                requests, timeout=timeout_s, metadata=self._token()
            ):
                yield calls.answer(reply)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def record_event(
        self,
        user_id: str,
        item_id: str,
        type: EventTypeName = "click",
        *,
        value: float | None = None,
        time: Time | None = None,
        event_id: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Records one event and returns its version token; raises if the event is refused."""
        event = calls.one_event(user_id, item_id, type, value, time, event_id)
        receipt = await self.record_events([event], timeout_s=timeout_s)
        for result in receipt.rejected:
            raise from_element(result.error)
        return receipt.version_token(user_id)

    async def record_events(
        self, events: Iterable[Event], *, history_import: bool = False, timeout_s: float | None = None
    ) -> EventReceipt:
        """Records any number of events; each is judged on its own, see `EventReceipt.rejected`.

        When it raises, some may be recorded: send the same Event objects again, each counts once.
        """
        batch = list(events)
        await self._learn_shard_map()
        groups = self._router.split((event.user_id for event in batch), MAX_BATCH_EVENTS)

        async def send(positions: list[int]) -> EventReceipt:
            part = [batch[position] for position in positions]
            reply = await self._run(calls.record_events(part, history_import=history_import), timeout_s)
            return calls.receipt(part, reply)

        return calls.merge_receipts(groups, await self._in_parallel(send, groups))

    async def record_stream(
        self,
        batches: Iterable[Sequence[Event]] | AsyncIterable[Sequence[Event]],
        *,
        history_import: bool = False,
        timeout_s: float = 600.0,
    ) -> AsyncIterator[EventReceipt | ServerError]:
        """Sends batches on one stream and yields their receipts in order; a refused batch is an error."""
        sent: list[Sequence[Event]] = []

        async def messages() -> AsyncIterator[event_pb2.StreamEventsRequest]:
            async for batch in _each(batches):
                sent.append(batch)
                yield calls.stream_events_request(batch, history_import=history_import)

        stubs = await self._stubs_of(self._router.entry)
        try:
            async for reply in stubs.event.StreamEvents(messages(), timeout=timeout_s, metadata=self._token()):
                yield calls.stream_receipt(sent.pop(0), reply)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def record_feedback(
        self, user_id: str, request_id: str, rewards: Mapping[str, float], *, timeout_s: float | None = None
    ) -> feedback_pb2.RecordFeedbackResponse:
        """Says what came of an answer: a reward from 0 to 1 by item id, 1 for an item that was chosen.

        Items above the last chosen one that are not named count as seen and left, unless a reward is 0: then only what
        is named counts. Sending it again changes nothing. Raises NotFoundError for an answer that is too old.
        """
        return await self._run(calls.record_feedback(user_id, request_id, rewards), timeout_s)

    async def get_profile(
        self, user_id: str, *, read_time: Time | None = None, timeout_s: float | None = None
    ) -> profile_pb2.Profile:
        """What the server knows of a user; empty for an unknown one."""
        return (await self._run(calls.get_profile(user_id, read_time), timeout_s)).profile

    async def update_profile(
        self,
        user_id: str,
        *,
        declared_interests: Iterable[str] | None = None,
        segments: Iterable[str] | None = None,
        timeout_s: float | None = None,
    ) -> profile_pb2.Profile:
        """Replaces the interests that the user declared, in free text, or the segments; what is None stays."""
        return (await self._run(calls.update_profile(user_id, declared_interests, segments), timeout_s)).profile

    async def delete_profile(self, user_id: str, *, timeout_s: float | None = None) -> int:
        """Forgets a user; returns how many events the profile had held."""
        return (await self._run(calls.delete_profile(user_id), timeout_s)).deleted_event_count

    async def export_profile(
        self, user_id: str, *, timeout_s: float = 600.0
    ) -> AsyncIterator[profile_pb2.Profile | event_pb2.Event]:
        """Everything the server holds of a user: first the profile, then its events, oldest first."""
        await self._learn_shard_map()
        request = profile_pb2.ExportProfileRequest(user_id=user_id)
        stubs = await self._stubs_of(self._router.address_of(user_id))
        try:
            async for part in stubs.profile.ExportProfile(request, timeout=timeout_s, metadata=self._token()):
                yield part.profile if part.HasField("profile") else part.event
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def upsert_items(
        self, items: Iterable[catalog_pb2.Item], *, timeout_s: float = 60.0
    ) -> catalog_pb2.UpsertItemsResponse:
        """Adds or replaces up to 256 items; they can be recommended when it returns."""
        return await self._run(calls.upsert_items(items), timeout_s)

    async def delete_items(self, item_ids: Iterable[str], *, timeout_s: float | None = None) -> int:
        """Removes up to 256 items, all or none; returns how many."""
        return (await self._run(calls.delete_items(item_ids), timeout_s)).deleted_count

    async def get_item(self, item_id: str, *, timeout_s: float | None = None) -> catalog_pb2.GetItemResponse:
        """One item with its bias and live popularity; raises NotFoundError."""
        return await self._run(calls.get_item(item_id), timeout_s)

    async def list_items(
        self, *, page_size: int = 1_000, timeout_s: float | None = None
    ) -> AsyncIterator[catalog_pb2.Item]:
        """All items in the order of the catalogue, read page by page."""
        token = ""
        while True:
            page = await self._run(calls.list_items(page_size, token), timeout_s)
            for item in page.items:
                yield item
            token = page.next_page_token
            if not token:
                return

    async def search_items(
        self, query: str, *, count: int = 10, timeout_s: float | None = None
    ) -> list[catalog_pb2.ItemMatch]:
        """The items whose text is nearest to a free text, best first."""
        return list((await self._run(calls.search_items(query, count), timeout_s)).matches)

    async def serving_status(self, *, timeout_s: float | None = None) -> admin_pb2.GetServingStatusResponse:
        """What every shard serves, and the shard map."""
        return await self._run(calls.get_serving_status(), timeout_s)

    async def list_snapshots(self, *, timeout_s: float | None = None) -> list[admin_pb2.SnapshotSummary]:
        """The published snapshots, newest first."""
        return list((await self._run(calls.list_snapshots(), timeout_s)).snapshots)

    async def activate_snapshot(
        self, snapshot_version: str = "", *, timeout_s: float = 300.0
    ) -> admin_pb2.ActivateSnapshotResponse:
        """Serves a published snapshot on every shard; the newest published one unless named."""
        return await self._run(calls.activate_snapshot(snapshot_version), timeout_s)

    async def roll_back_snapshot(self, *, timeout_s: float = 300.0) -> str:
        """Goes back to the snapshot served before; returns its version."""
        return (await self._run(calls.roll_back_snapshot(), timeout_s)).snapshot_version

    async def roll_back_weights(self, *, timeout_s: float = 60.0) -> int:
        """Goes back from the learned weights in use to those before; returns their version, 0 for the snapshot's."""
        return (await self._run(calls.roll_back_weights(), timeout_s)).weights_version

    async def close(self) -> None:
        """Closes the connections; calls in progress are cancelled."""
        for connecting in list(self._connecting.values()):
            connecting.cancel()
        stubs, self._stubs = list(self._stubs.values()), {}
        for stub in stubs:
            await stub.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[Reply], timeout_s: float | None) -> Reply:
        """Sends a call until it succeeds, fails for good, or its deadline passes."""
        attempts = Attempts(
            self._retry,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            idempotent=call.idempotent,
        )
        while True:
            if call.user_id is not None:
                await self._learn_shard_map(attempts.remaining_s())
            address = self._router.address_of(call.user_id)
            try:
                stubs = await self._stubs_of(address)
                reply: Reply = await call.method(stubs)(
                    call.request, timeout=attempts.remaining_s(), metadata=self._token()
                )
                return reply
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if isinstance(failure, UnavailableError):
                    self._router.failed(address)
                delay = attempts.delay_after(failure)
                if delay is None:
                    raise failure from error
            await asyncio.sleep(delay)

    async def _learn_shard_map(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Reads the shard map through the entry when it is due. Calls work without one: shards forward."""
        if not self._router.claim_refresh():
            return
        stubs = await self._stubs_of(self._router.entry)
        try:
            status = await stubs.admin.GetServingStatus(
                admin_pb2.GetServingStatusRequest(),
                timeout=min(CONNECT_TIMEOUT_S, timeout_s),
                metadata=self._token(),
            )
        except grpc.RpcError as error:
            if isinstance(from_rpc_error(error), UnsupportedError):
                self._router.forgo()
            return
        self._router.learn(status)

    async def _stubs_of(self, address: str) -> AsyncStubs:
        """The stubs at an address; those of the entry when a shard's own address can't be connected to."""
        stubs = self._stubs.get(address)
        if stubs is not None:
            return stubs
        # Calls that come together make one connection, and wait for it together.
        connecting = self._connecting.get(address)
        if connecting is None:
            connecting = self._connecting[address] = asyncio.create_task(self._connect(address))
            connecting.add_done_callback(lambda _: self._connecting.pop(address, None))
        return await asyncio.shield(connecting)

    async def _connect(self, address: str) -> AsyncStubs:
        channel = (
            grpc.aio.secure_channel(address, self._credentials, self._options)
            if self._credentials
            else grpc.aio.insecure_channel(address, self._options)
        )
        if address != self._router.entry:
            try:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
            except TimeoutError:
                await channel.close()
                self._router.failed(address)
                return await self._stubs_of(self._router.entry)
        self._stubs[address] = AsyncStubs(channel)
        return self._stubs[address]

    async def _in_parallel(self, work: Callable[[list[int]], Awaitable[Part]], groups: list[list[int]]) -> list[Part]:
        return list(await asyncio.gather(*(work(group) for group in groups)))


async def _each(parts: Iterable[Part] | AsyncIterable[Part]) -> AsyncIterator[Part]:
    """The elements of an iterable of either kind."""
    if isinstance(parts, AsyncIterable):
        async for part in parts:
            yield part
    else:
        for part in parts:
            yield part
