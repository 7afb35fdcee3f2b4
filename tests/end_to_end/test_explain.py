"""Explanations through a real server with two shards: the API, and what the command prints."""

import json
import time

import pytest

from heliotrope import Client, Event, NotFoundError, RecommendRequest, category_in, item_filter
from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope_server.explain_command import main
from tests.end_to_end.running_server import running_server
from tests.server import worlds

USERS = [f"user-{number}" for number in range(6)]
"""On both shards."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    worlds.publish(folder / "store", labelled=True, neighbour_weight=0.5)
    with running_server(folder / "store", folder / "data", "--shards", "2") as running:
        with Client(running.address) as client:
            now = time.time()
            for number, user in enumerate(USERS):
                client.record_events(
                    [
                        Event(user, f"i{number + 7 * step}", kind, value, now - 600.0 * step, f"{user}-{step}")
                        for step, (kind, value) in enumerate(
                            [("rating", 5.0), ("click", None), ("purchase", None), ("dislike", None)]
                        )
                    ]
                )
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


@pytest.mark.parametrize("direct", [True, False])
def test_every_shard_explains_the_lists_of_its_users_whoever_is_asked(server, direct):
    with Client(server.address, direct=direct) as client:
        for user in USERS:
            found = client.explain(user, count=5)
            assert found.eligible_count == 200 - 4
            assert [item.item_id for item in found.items] == [one.item_id for one in found.response.recommendations]
            for item, one in zip(found.items, found.response.recommendations, strict=True):
                assert item.place == item.rank and item.score == pytest.approx(one.score, abs=1e-5)
                assert sum(part.value for part in item.explanation) == pytest.approx(item.score, abs=1e-5)
                assert [each.event_id.rpartition("-")[0] for each in item.counterfactuals] == [user] * 3


def test_why_not_through_the_api(client):
    request = RecommendRequest(
        user_id="user-0", count=5, excluded_item_ids=["i3"], filter=item_filter(category_in("even"))
    )
    found = {item.item_id: item for item in client.explain(request, ["i0", "i3", "i4"]).items}
    assert found["i0"].absences[0].kind == pb.ABSENCE_KIND_SEEN
    reasons = {reason.kind: reason for reason in found["i3"].absences}
    assert pb.ABSENCE_KIND_EXCLUDED in reasons
    assert reasons[pb.ABSENCE_KIND_FILTERED].condition_index == 0
    assert not found["i3"].HasField("place")
    with pytest.raises(NotFoundError) as caught:
        client.explain("user-0", ["nothing"])
    assert caught.value.reason == "ITEM_NOT_FOUND"


def test_a_recommendation_names_three_events_and_sums_the_others(client):
    client.record_events([Event("busy", f"i{number}", "click", event_id=f"busy-{number}") for number in range(9)])
    for one in client.recommend("busy", explain=True).recommendations:
        kinds = [part.kind for part in one.explanation]
        assert kinds.count(pb.CONTRIBUTION_KIND_EVENT) == 3 and kinds.count(pb.CONTRIBUTION_KIND_OTHER_EVENTS) == 1
        assert sum(part.value for part in one.explanation) == pytest.approx(one.score, abs=1e-5)
    whole = client.explain("busy").items[0].explanation
    assert len([part for part in whole if part.kind == pb.CONTRIBUTION_KIND_EVENT]) == 9


def test_the_command_says_why(server, client, capsys):
    assert main(["user-1", "--address", server.address]) == 0
    shown = capsys.readouterr().out
    best = client.explain("user-1").items[0]
    assert f"title {best.item_id.removeprefix('i')} " in shown
    assert "you rated title 1 5" in shown or "you clicked title 8" in shown or "you bought title 15" in shown
    assert "in place of" in shown

    assert main(["user-1", "i1", "--address", server.address]) == 0
    shown = capsys.readouterr().out
    assert "title 1 (i1) for user-1: score" in shown
    assert "not among the 10 recommended: the user has an event on it" in shown
    assert "you disliked title 22" in shown and "had you not rated title 1 5:" in shown

    assert main(["user-1", "i1", "--json", "--address", server.address]) == 0
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert item["absences"][0]["kind"] == "ABSENCE_KIND_SEEN"


def test_the_command_says_what_it_could_not_do(server, capsys):
    assert main(["user-1", "nothing", "--address", server.address]) == 1
    assert "the catalogue has no item 'nothing'" in capsys.readouterr().err
    assert main(["user-1", "--count", "0"]) == 2
    assert "--count" in capsys.readouterr().err
    assert main(["user-1", "--address", "nowhere"]) == 1
    assert "HOST:PORT" in capsys.readouterr().err
