"""One suite for both clients, against a real gRPC server in this process."""

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import heliotrope
from heliotrope import AsyncClient, Client, Event, Item, RecommendRequest, RetryPolicy
from tests.proto.toy_server import Shard, failure, owner, publish_map, toy_server

FAST = RetryPolicy(max_attempts=4, initial_backoff_s=0.001)
USERS = [f"u{number}" for number in range(40)]


class Blocking:
    """An AsyncClient called from plain test functions; async iterators are read to the end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def run(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.isasyncgen(result):

                async def collect() -> list[Any]:
                    return [part async for part in result]

                return self._runner.run(collect())
            return self._runner.run(result)

        return run

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Connect = Callable[..., Any]


@pytest.fixture(params=[Client, Blocking], ids=["sync", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    opened: list[Any] = []

    def open_client(address: str, **options: Any) -> Any:
        opened.append(request.param(address, **{"retry": FAST, **options}))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


@pytest.fixture
def shards() -> Iterator[list[Shard]]:
    with toy_server() as running:
        yield running


def test_reads_what_it_wrote(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    token = client.record_event("u1", "m1", "rating", value=5)
    assert token == f"token@{shards[owner('u1')].address}"
    assert [one.item_id for one in client.recommend("u1").recommendations] == ["m1"]
    (event,) = shards[owner("u1")].events["u1"].values()
    assert event.value == 5 and len(event.event_id) == 22


def test_calls_go_to_the_owner(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    for user in USERS:
        client.recommend(user)
    for index, shard in enumerate(shards):
        asked = [users[0] for method, users in shard.calls if method == "Recommend"]
        assert asked == [user for user in USERS if owner(user) == index]


def test_everything_goes_through_the_entry_when_told_so(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address, direct=False)
    client.recommend_batch(USERS)
    assert shards[1].calls == [] and [method for method, _ in shards[0].calls] == ["BatchRecommend"]


def test_batches_are_split_by_owner_and_put_back_in_order(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    users = [f"u{number}" for number in range(700)]
    receipt = client.record_events([Event(user, f"item of {user}") for user in users])
    assert not receipt.rejected and len(receipt.results) == 700
    answers = client.recommend_batch(users)
    assert [answer.recommendations[0].item_id for answer in answers] == [f"item of {user}" for user in users]
    assert {user: receipt.version_token(user) for user in users} == {
        user: f"token@{shards[owner(user)].address}" for user in users
    }
    for shard in shards:
        sizes = [len(asked) for method, asked in shard.calls if method == "BatchRecommend"]
        assert sizes and max(sizes) <= 256


def test_a_refused_element_is_an_error_in_its_place(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    good, bad = client.recommend_batch(["u1", RecommendRequest(user_id="u2", count=0)])
    assert good.request_id == "u1"
    assert isinstance(bad, heliotrope.InvalidRequestError) and bad.metadata == {"limit": "1000"}
    receipt = client.record_events([Event("u1", "unknown", event_id="a"), Event("u1", "m1", event_id="b")])
    assert [result.event_id for result in receipt.rejected] == ["a"]
    with pytest.raises(heliotrope.NotFoundError, match="no such item"):
        client.record_event("u1", "unknown")


def test_an_error_carries_reason_and_metadata(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    with pytest.raises(heliotrope.InvalidRequestError) as caught:
        client.recommend("u1", count=10_000)
    assert caught.value.reason == "INVALID_COUNT"
    assert caught.value.metadata == {"limit": "1000"}
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_reads_are_retried_while_unavailable(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address, direct=False)
    shards[0].failures += [failure(grpc.StatusCode.UNAVAILABLE)] * 3
    assert client.recommend("u1").request_id == "u1"
    shards[0].failures += [failure(grpc.StatusCode.UNAVAILABLE, "SHARD_UNREACHABLE")] * 4
    with pytest.raises(heliotrope.UnavailableError) as caught:
        client.recommend("u1")
    assert caught.value.reason == "SHARD_UNREACHABLE" and not shards[0].failures


def test_an_event_whose_reply_was_lost_counts_once(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address, direct=False)
    lost = failure(grpc.StatusCode.UNAVAILABLE)
    lost.message = "reply lost"
    shards[0].failures.append(lost)
    assert client.record_event("u1", "m1")
    assert [method for method, _ in shards[0].calls] == ["RecordEvents"] * 2
    assert len(shards[0].events["u1"]) == 1


def test_explanations_come_from_the_owner_of_the_user(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    for user in USERS[:8]:
        found = client.explain(user, ["m1", "m2"], count=7, counterfactuals=2)
        assert [item.item_id for item in found.items] == ["m1", "m2"] and found.eligible_count == 7
        assert ("Explain", (user,)) in shards[owner(user)].calls
    assert client.explain(RecommendRequest(user_id=USERS[0], count=3)).eligible_count == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_other_writes_are_sent_once(connect: Connect, shards: list[Shard], code: grpc.StatusCode) -> None:
    client = connect(shards[0].address, direct=False)
    shards[0].failures.append(failure(code))
    with pytest.raises(heliotrope.ServerError):
        client.upsert_items([Item(item_id="m1", title="one")])
    assert [method for method, _ in shards[0].calls] == ["UpsertItems"]


def test_overload_is_waited_out_when_the_server_says_how_long(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address, direct=False)
    shards[0].failures.append(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.01))
    assert client.upsert_items([Item(item_id="m1", title="one")]).created_count == 1
    shards[0].failures.append(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.5))
    with pytest.raises(heliotrope.OverloadedError) as caught:
        client.recommend("u1", timeout_s=0.2)
    assert caught.value.retry_after_s == 0.5


def test_a_call_that_grpc_refused_on_the_servers_side_is_overload(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address, direct=False)
    shards[0].failures.append(failure(grpc.StatusCode.CANCELLED))
    assert client.recommend("u1").request_id == "u1"
    shards[0].failures.append(failure(grpc.StatusCode.CANCELLED))
    with pytest.raises(heliotrope.OverloadedError):
        client.upsert_items([Item(item_id="m1", title="one")])


async def test_calls_that_come_together_share_one_connection(shards: list[Shard]) -> None:
    async with heliotrope.AsyncClient(shards[0].address) as client:
        await client.recommend(next(user for user in USERS if owner(user) == 0))  # learns the map
        await asyncio.gather(*(client.recommend(user) for user in USERS * 10))
        assert len(client._stubs) == 2 and not client._connecting


def test_a_call_without_a_server_ends_in_time(connect: Connect) -> None:
    client = connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(heliotrope.UnavailableError):
        client.recommend("u1", timeout_s=2)


def test_a_shard_that_cannot_be_reached_is_called_through_the_entry(connect: Connect, shards: list[Shard]) -> None:
    publish_map(shards, [shards[0].address, f"127.0.0.1:{free_port()}"])
    client = connect(shards[0].address)
    user = next(user for user in USERS if owner(user) == 1)
    assert client.recommend(user, timeout_s=5).request_id == user
    assert ("Recommend", (user,)) in shards[0].calls


def test_the_map_is_learnt_again_when_a_shard_is_unavailable(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    user = next(user for user in USERS if owner(user) == 1)
    client.recommend(user)
    shards[1].failures.append(failure(grpc.StatusCode.UNAVAILABLE))
    client.recommend(user)
    assert ("Recommend", (user,)) in shards[0].calls
    assert client._client._router._stale if isinstance(client, Blocking) else client._router._stale


def test_streams_answer_in_order_and_go_on_after_an_error(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    batches = [[Event("u1", "m1")], [], [Event("u2", "m2")]]
    first, refused, last = client.record_stream(batches)
    assert first.version_token("u1") and last.version_token("u2")
    assert isinstance(refused, heliotrope.InvalidRequestError)
    answers = list(client.recommend_stream(["u1", RecommendRequest(user_id="u1"), "u2"]))
    assert [getattr(answer, "request_id", answer) for answer in answers[::2]] == ["u1", "u2"]
    assert isinstance(answers[1], heliotrope.InvalidRequestError)
    shards[0].failures.append(failure(grpc.StatusCode.INTERNAL, "INTERNAL"))
    with pytest.raises(heliotrope.InternalError):
        list(client.recommend_stream(["u1"]))


def test_feedback_goes_to_the_owner_and_is_sent_again_when_told_to(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    for user in USERS[:10]:
        shard = shards[owner(user)]
        shard.failures.append(failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.001))
        reply = client.record_feedback(user, f"r-{user}", {"m1": 1.0, "m2": 0.25})
        assert (reply.recorded_count, reply.duplicate_count) == (2, 0)
        assert shard.feedback[f"r-{user}"] == {"m1": 1.0, "m2": 0.25}
        assert client.record_feedback(user, f"r-{user}", {"m1": 1.0}).duplicate_count == 1


def test_profiles_catalogue_and_admin(connect: Connect, shards: list[Shard]) -> None:
    client = connect(shards[0].address)
    client.record_event("u1", "m1", event_id="e1")
    assert client.get_profile("u1").remembered_event_count == 1
    assert client.update_profile("u1", declared_interests=["jazz"]).declared_interests == ["jazz"]
    profile, event = client.export_profile("u1")
    assert (profile.user_id, event.event_id) == ("u1", "e1")
    assert client.delete_profile("u1") == 1
    assert [item.item_id for item in client.list_items(page_size=2)] == ["0", "1", "2", "3", "4"]
    assert client.get_item("m7").item.item_id == "m7"
    assert client.search_items("space").pop().item.title == "space"
    assert client.delete_items(["a", "b"]) == 2
    assert client.serving_status().slot_count == 16
    assert client.list_snapshots()[0].snapshot_version == "v1"
    assert client.activate_snapshot("v1").snapshot_version == "v1"
    assert client.roll_back_snapshot() == "v0"
    assert client.roll_back_weights() == 2


@pytest.mark.parametrize("address", ["", "localhost", "localhost:0", "localhost:x", "http://localhost:1"])
def test_an_address_that_is_none_is_refused_at_once(connect: Connect, address: str) -> None:
    with pytest.raises(heliotrope.ConnectionSettingsError, match="HOST:PORT"):
        Client(address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
