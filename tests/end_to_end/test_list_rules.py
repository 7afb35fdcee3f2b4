"""Rules for lists through a real server and both clients."""

import asyncio

import pytest

from heliotrope import AsyncClient, Client
from heliotrope.errors import InvalidRequestError
from heliotrope.v1 import recommendation_pb2
from tests.end_to_end.running_server import running_server
from tests.server import worlds


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    worlds.publish(folder / "store", labelled=True)
    options = ["--shards", "2", "--max-per-category", "4", "--explore-share", "0.25"]
    with running_server(folder / "store", folder / "data", *options) as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


def numbers(answer):
    return [int(each.item_id[1:]) for each in answer.recommendations]


def test_the_rules_of_the_server_hold_until_a_request_says_otherwise(client):
    plain = client.recommend("nobody", max_per_category=0, explore_share=0)
    assert not any(each.HasField("propensity") for each in plain.recommendations)
    scores = [each.score for each in plain.recommendations]
    assert scores == sorted(scores, reverse=True)
    capped = client.recommend("nobody", count=8, explore_share=0)
    assert sum(number % 2 for number in numbers(capped)) == 4
    assert client.get_item("i6").item.provider == "p1"


def test_every_rule_can_be_asked_for(client):
    off = {"max_per_category": 0, "explore_share": 0.0}
    plain = client.recommend("nobody", **off)
    diverse = client.recommend("nobody", **{**off, "diversity": 0.9, "relevance_floor": 0.0})
    assert numbers(diverse) != numbers(plain)
    assert numbers(diverse)[0] == numbers(plain)[0]
    one_each = client.recommend("nobody", count=4, **{**off, "max_provider_share": 0.25})
    providers = [number % 5 for number in numbers(one_each) if number % 5]
    assert len(providers) == len(set(providers))
    for answer in client.recommend_batch([f"user-{place}" for place in range(30)], count=6, explore_share=0.5):
        last = answer.recommendations[-1]
        explored = last.source == recommendation_pb2.SOURCE_EXPLORE
        assert last.propensity == pytest.approx(0.5 / 50 if explored else 0.5)
        assert all(each.propensity == 1.0 for each in answer.recommendations[:-1])


def test_the_asyncio_client_asks_the_same(server, client):
    async def ask():
        async with AsyncClient(server.address) as asking:
            single = await asking.recommend("nobody", diversity=0.5, explore_share=0)
            (batched,) = await asking.recommend_batch(["nobody"], diversity=0.5, explore_share=0)
            return single, batched

    single, batched = asyncio.run(ask())
    assert numbers(single) == numbers(batched) == numbers(client.recommend("nobody", diversity=0.5, explore_share=0))


def test_a_wrong_rule_is_refused_with_its_limit(client):
    with pytest.raises(InvalidRequestError, match="diversity must be 0 to 1, not 2"):
        client.recommend("nobody", diversity=2.0)
    with pytest.raises(InvalidRequestError, match="with diversity, count must be 1 to 100, not 200"):
        client.recommend("nobody", count=200, diversity=0.5)
    with pytest.raises(TypeError, match="colour"):
        client.recommend("nobody", colour="blue")
