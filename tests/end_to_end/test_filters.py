"""Attributes and filters through a real server and both clients."""

import asyncio
from datetime import UTC, datetime

import pytest

from heliotrope import (
    AsyncClient,
    Client,
    attribute_in,
    attribute_not_in,
    attributes_of,
    category_in,
    category_not_in,
    item_filter,
    make_item,
    number_range,
    provider_in,
    provider_not_in,
)
from heliotrope.errors import InvalidRequestError, ServerError
from heliotrope.v1 import filter_pb2
from heliotrope.v1.recommendation_pb2 import RecommendRequest
from tests.end_to_end.running_server import running_server
from tests.server import worlds

PAST, FUTURE = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filters")
    worlds.publish(folder / "store", attributed=True, with_index=True)
    with running_server(folder / "store", folder / "data", "--shards", "2") as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


def numbers(answer):
    return [int(each.item_id[1:]) for each in answer.recommendations]


def test_items_are_read_with_their_attributes(client):
    item = client.get_item("i110").item
    assert attributes_of(item) == {"adult": False, "studio": "s2", "year": 2010.0}
    assert (item.price, item.available_from_time.ToDatetime(UTC)) == (11.0, PAST)
    assert not item.HasField("available_until_time")
    assert attributes_of(next(client.list_items())) == {"adult": True, "year": 1900.0}
    assert not client.get_item("i3").item.HasField("price")


@pytest.mark.parametrize(
    ("conditions", "admits"),
    [
        ([category_in("c1", "c2")], lambda n: n % 7 in (1, 2)),
        ([category_not_in("odd"), provider_in("p1", "p2")], lambda n: n % 2 == 0 and n % 5 in (1, 2)),
        (
            [provider_not_in("p1"), number_range("price", min=5, max=10)],
            lambda n: n % 5 != 1 and n % 3 and 50 <= n <= 100,
        ),
        (
            [attribute_in("studio", "s1", "s2"), number_range("year", max=1950)],
            lambda n: n % 4 and n % 6 in (1, 2) and n % 120 <= 50,
        ),
        (
            [attribute_not_in("adult", True, False), attribute_in("year", 1901, 1917)],
            lambda n: n % 10 and n % 120 in (1, 17),
        ),
        ([attribute_in("unheard-of", "x")], lambda n: False),
    ],
)
def test_every_condition_can_be_asked_for(client, conditions, admits):
    wanted = {number for number in range(200) if admits(number)}
    found = client.recommend("nobody", count=200, filter=item_filter(*conditions, include_unavailable=True))
    assert set(numbers(found)) == wanted
    open_now = {number for number in wanted if number % 13 or number % 11 == 0}
    assert set(numbers(client.recommend("nobody", count=200, filter=item_filter(*conditions)))) == open_now


def test_batches_and_streams_of_both_clients_are_filtered(server, client):
    odd = item_filter(category_in("odd"))
    users = [f"user-{place}" for place in range(10)]

    async def ask():
        async with AsyncClient(server.address) as asking:
            single = await asking.recommend("user-0", filter=odd)
            batch = await asking.recommend_batch(users, filter=odd)
            return single, batch, [answer async for answer in asking.recommend_stream(users, filter=odd)]

    single, batch, stream = asyncio.run(ask())
    answers = [single, *batch, *stream, *client.recommend_batch(users, filter=odd)]
    answers += client.recommend_stream(users, filter=odd)
    for answer in answers:
        assert len(numbers(answer)) == 10 and all(number % 2 for number in numbers(answer))


def test_wrong_attributes_are_refused_with_their_limits(client):
    with pytest.raises(InvalidRequestError, match="price must be a finite number from 0 on, not -1"):
        client.upsert_items([make_item("n1", "t", price=-1)])
    with pytest.raises(InvalidRequestError, match="available_until_time must be later"):
        client.upsert_items([make_item("n1", "t", available_from=FUTURE, available_until=PAST)])
    with pytest.raises(InvalidRequestError, match="can't be called price"):
        client.upsert_items([make_item("n1", "t", attributes={"price": 1})])
    with pytest.raises(InvalidRequestError, match="65 attributes; at most 64"):
        client.upsert_items([make_item("n1", "t", attributes={f"k{place}": place for place in range(65)})])
    with pytest.raises(InvalidRequestError, match="1 to 64 bytes of UTF-8, not 65"):
        client.upsert_items([make_item("n1", "t", attributes={"k" * 65: "v"})])
    with pytest.raises(InvalidRequestError, match="257 bytes of UTF-8; at most 256"):
        client.upsert_items([make_item("n1", "t", attributes={"k": "v" * 257})])
    empty = make_item("n1", "t")
    empty.attributes["k"].SetInParent()
    with pytest.raises(InvalidRequestError, match="attribute 'k' is empty"):
        client.upsert_items([empty])


def test_a_wrong_filter_is_refused_with_its_limit_and_alone_in_its_batch(client):
    with pytest.raises(InvalidRequestError, match=r"that of 'price' is 2 to 1") as refused:
        client.recommend("nobody", filter=item_filter(number_range("price", min=2, max=1)))
    assert refused.value.reason == "INVALID_RANGE"
    with pytest.raises(InvalidRequestError, match="33 conditions; at most 32"):
        client.recommend("nobody", filter=item_filter(*[category_in("a")] * 33))
    with pytest.raises(InvalidRequestError, match="sets no test"):
        client.recommend("nobody", filter=item_filter(filter_pb2.Condition()))
    bad = RecommendRequest(user_id="u", count=3, filter=item_filter(category_in()))
    outcomes = client.recommend_batch(["nobody", bad], count=3)
    assert len(outcomes[0].recommendations) == 3
    assert isinstance(outcomes[1], ServerError) and outcomes[1].reason == "EMPTY_CONDITION"
    first, second = client.recommend_stream([bad, "nobody"], count=3)
    assert isinstance(first, ServerError) and len(second.recommendations) == 3
