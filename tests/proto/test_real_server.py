"""The clients against `heliotrope serve` with two shards."""

import asyncio
from collections.abc import Iterator

import pytest

import heliotrope
from heliotrope import AsyncClient, Client, Event
from heliotrope.v1 import event_pb2, profile_pb2
from tests.end_to_end.running_server import running_server
from tests.server.worlds import publish

USERS = [f"user {number} ü" for number in range(300)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("client")
    publish(folder / "store")
    with running_server(folder / "store", folder / "data", "--shards", "2") as server:
        yield server.address


def test_users_read_their_writes_wherever_they_ask(address: str) -> None:
    with Client(address) as direct, Client(address, direct=False) as forwarded:
        status = direct.serving_status()
        assert len(status.shards) == 2 and status.slot_count > 0
        events = [Event(user, f"i{place % 200}") for place, user in enumerate(USERS)]
        receipt = direct.record_events(events)
        assert not receipt.rejected
        assert {result.outcome for result in direct.record_events(events).results} == {
            event_pb2.EVENT_OUTCOME_DUPLICATE
        }
        for client in (direct, forwarded):
            answers = client.recommend_batch(USERS, count=200, seen="exclude")
            for place, answer in enumerate(answers):
                assert not isinstance(answer, heliotrope.ServerError)
                assert len(answer.recommendations) == 199
                assert f"i{place % 200}" not in {one.item_id for one in answer.recommendations}
            token = receipt.version_token(USERS[7])
            assert client.recommend(USERS[7], version_token=token).recommendations
        shares = [shard.recommend_count for shard in direct.serving_status().shards]
        assert min(shares) > 0


def test_one_call_each_of_the_rest(address: str) -> None:
    with Client(address) as client:
        token = client.record_event("solo", "i1", "rating", value=5, event_id="e1")
        answer = client.recommend("solo", count=3, explain=True, version_token=token)
        for one in answer.recommendations:
            assert one.score == pytest.approx(sum(part.value for part in one.explanation), rel=1e-5, abs=1e-6)
        profile, event = client.export_profile("solo")
        assert isinstance(profile, profile_pb2.Profile) and isinstance(event, event_pb2.Event)
        assert event.event_id == "e1" and client.get_profile("solo").remembered_event_count == 1
        assert client.delete_profile("solo") == 1
        assert len({item.item_id for item in client.list_items(page_size=70)}) == 200
        assert client.get_item("i5").item.title == "title 5"
        assert client.list_snapshots()[0].active


def test_refusals_are_the_right_exceptions(address: str) -> None:
    with Client(address) as client:
        for count in (0, 10_000):
            with pytest.raises(heliotrope.InvalidRequestError) as refused:
                client.recommend("u", count=count)
            assert refused.value.reason and refused.value.metadata
        with pytest.raises(heliotrope.NotFoundError) as unknown:
            client.record_event("u", "no such item")
        assert unknown.value.reason == "ITEM_NOT_FOUND"
        with pytest.raises(heliotrope.InvalidRequestError):
            client.record_event("u", "i1", "rating", value=float("nan"))
        with pytest.raises(heliotrope.InvalidRequestError):
            client.record_event("u", "i1", time=0.0)
        with pytest.raises(heliotrope.FailedPreconditionError):
            client.update_profile("u", declared_interests=["jazz"])
        with pytest.raises(heliotrope.ServerError):
            client.recommend("u", version_token="g-another.0:5")


async def test_streams_and_calls_of_the_asyncio_client(address: str) -> None:
    async with AsyncClient(address) as client:
        batches = [[Event(user, "i3", "view")] for user in USERS[:20]]
        receipts = [receipt async for receipt in client.record_stream(batches)]
        assert len(receipts) == 20
        for receipt, user in zip(receipts, USERS, strict=False):
            assert not isinstance(receipt, heliotrope.ServerError) and receipt.version_token(user)
        answers = [answer async for answer in client.recommend_stream(USERS[:20], count=5)]
        assert all(len(getattr(answer, "recommendations", ())) == 5 for answer in answers)
        many = await asyncio.gather(*(client.recommend(user) for user in USERS[:50]))
        assert all(len(answer.recommendations) == 10 for answer in many)
