"""The whole main job with the real BERT: build, serve, recommend, record, rebuild, activate."""

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from heliotrope import Client, Event, Item, attribute_in, item_filter, make_item, number_range
from heliotrope.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from heliotrope.v1 import recommendation_pb2
from heliotrope_indexer.snapshot import SnapshotStore
from tests.end_to_end.running_server import running_server

# Three tastes, told apart by their texts alone.
FILMS = {
    "space": [
        "Starship Horizon: a crew lost between galaxies fights an alien fleet",
        "Red Planet Colony: astronauts stranded on Mars grow food to survive",
        "The Last Orbit: a space station falls and its astronauts must repair it",
        "Nebula War: rebel pilots attack the emperor's battle station in deep space",
        "First Contact Protocol: scientists decode a message from an alien ship",
        "Gravity Well: a mission to a black hole bends time for its crew",
        "Moonbase Zero: an engineer finds an alien machine under the lunar dust",
        "Rocket Summer: the race to launch the first crew around the Moon",
    ],
    "romance": [
        "A Summer in Verona: two strangers fall in love over letters",
        "The Wedding Cake: a baker falls for the brother of the bride",
        "Second Chances: childhood sweethearts meet again after a divorce",
        "Love at the Bookshop: a shy writer courts the owner of a bookshop",
        "Dance With Me: a widowed teacher finds love in a ballroom class",
        "The Proposal Season: three sisters and their suitors in one summer",
        "Paris in the Rain: a florist and a musician share an umbrella and a kiss",
        "Dear Juliet: an old love letter reunites a couple after fifty years",
    ],
    "western": [
        "The Sheriff of Dry Creek: a lawman faces a gang of outlaws alone",
        "Dust and Silver: gunslingers hunt a stolen silver shipment across the desert",
        "Cattle Trail: cowboys drive a herd to Abilene through hostile country",
        "The Last Gunfighter: an ageing outlaw rides into town for a final duel",
        "Saddle and Star: a bounty hunter chases train robbers over the frontier",
        "Ghost Town Justice: a marshal defends miners from a ruthless rancher",
        "Stagecoach to Tucson: passengers fight off bandits on the frontier road",
        "Rio Bravo Nights: a deputy and a drunk hold a prisoner in the town jail",
    ],
}
TASTE_OF = {f"{taste}-{number}": taste for taste, texts in FILMS.items() for number in range(len(texts))}


def heliotrope(*arguments):
    command = [sys.executable, "-m", "heliotrope", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("job")
    with (folder / "films.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title"])
        for taste, texts in FILMS.items():
            writer.writerows((f"{taste}-{number}", text) for number, text in enumerate(texts))
    build = ["build", "--model", model_folder, "--catalogue", folder / "films.csv", "--out", folder / "store"]
    heliotrope(*build, "--dimension", 16, "--quiet")
    return folder


@pytest.fixture(scope="module")
def server(folder, model_folder):
    options = ["--model", str(model_folder), "--shards", "2"]
    with running_server(folder / "store", folder / "data", *options) as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address, timeout_s=30) as connected:
        yield connected


def tastes(answer, count=5):
    return [TASTE_OF.get(each.item_id, each.item_id) for each in answer.recommendations[:count]]


def test_text_alone_recommends_what_is_alike(client):
    receipt = client.record_events([Event("astronaut", f"space-{number}", "favorite") for number in range(3)])
    answer = client.recommend("astronaut", version_token=receipt.version_token("astronaut"))
    assert tastes(answer).count("space") >= 4


def test_the_status_shows_what_encodes(client):
    assert client.serving_status().shards[0].encoder == "CPUExecutionProvider int8"


def test_declared_interests_seed_a_new_user_and_events_then_take_over(client):
    client.update_profile("newcomer", declared_interests=["cowboys and gunfights in the wild west"])
    answer = client.recommend("newcomer")
    assert answer.recommendations[0].source == recommendation_pb2.SOURCE_DECLARED
    assert tastes(answer).count("western") >= 4
    client.record_events([Event("newcomer", f"romance-{number}", "purchase") for number in range(5)])
    answer = client.recommend("newcomer")
    assert answer.recommendations[0].source == recommendation_pb2.SOURCE_PERSONAL
    assert "romance" in tastes(answer, 3)
    profile = client.update_profile("newcomer", declared_interests=[])
    assert list(profile.declared_interests) == []


def test_a_segment_seeds_a_new_user_with_what_its_members_like(client):
    members = [f"rider{number}" for number in range(30)]
    for user in members:
        assert list(client.update_profile(user, segments=["ranch"]).segments) == ["ranch"]
    client.record_events([Event(user, f"western-{number}", "favorite") for user in members for number in range(3)])
    profile = client.update_profile("stranger", segments=["ranch", "unknown"])
    assert (list(profile.segments), list(profile.declared_interests)) == (["ranch", "unknown"], [])
    answer = client.recommend("stranger")
    assert answer.recommendations[0].source == recommendation_pb2.SOURCE_SEGMENT
    assert tastes(answer).count("western") >= 4
    # Each of the two is replaced alone.
    client.update_profile("stranger", declared_interests=["two people fall in love"])
    assert list(client.get_profile("stranger").segments) == ["ranch", "unknown"]
    assert client.recommend("stranger").recommendations[0].source == recommendation_pb2.SOURCE_DECLARED
    client.update_profile("stranger", segments=[])
    assert list(client.get_profile("stranger").declared_interests) == ["two people fall in love"]
    with pytest.raises(InvalidRequestError, match="at most 16"):
        client.update_profile("stranger", segments=[f"s{number}" for number in range(17)])


def test_free_text_finds_items(client):
    matches = client.search_items("a spaceship and its crew far from Earth", count=4)
    assert [TASTE_OF.get(match.item.item_id) for match in matches].count("space") >= 3
    assert matches[0].similarity >= matches[-1].similarity
    with pytest.raises(InvalidRequestError, match="1 to 2000 characters"):
        client.search_items("  ")


def test_a_new_item_is_recommended_at_once_and_gone_at_once(client):
    client.record_events([Event("pilot", f"space-{number}", "favorite") for number in range(3)])
    item = Item(item_id="fresh", title="Comet Riders: pilots of a rescue ship save a crew lost in deep space")
    created = client.upsert_items([item])
    assert (created.created_count, created.replaced_count) == (1, 0)
    for shard in client.serving_status().shards:
        with Client(shard.address, direct=False) as one:
            answer = one.recommend("pilot", count=6)
            assert "fresh" in [each.item_id for each in answer.recommendations]
            assert one.get_item("fresh").item.title == item.title
    client.record_events([Event("pilot", "fresh", "purchase", event_id="on-the-new-item")])
    explained = client.recommend("pilot", count=3, explain=True).recommendations[0].explanation
    assert "on-the-new-item" in [part.event_id for part in explained]

    replaced = client.upsert_items([Item(item_id="fresh", title="A quiet farm in Norway: a film about sheep")])
    assert (replaced.created_count, replaced.replaced_count) == (0, 1)
    assert client.get_item("fresh").item.title.startswith("A quiet farm")
    assert client.delete_items(["fresh"]) == 1
    with pytest.raises(NotFoundError):
        client.get_item("fresh")
    answer = client.recommend("pilot", count=100, seen="include")
    assert len(answer.recommendations) == len(TASTE_OF)


def test_a_long_text_is_embedded_as_far_as_the_model_reads_and_that_is_said(client):
    item = Item(item_id="epic", title="Epic", description="and then they rode on, " * 800)
    assert list(client.upsert_items([item]).truncated_item_ids) == ["epic"]
    client.delete_items(["epic"])
    with pytest.raises(InvalidRequestError, match="at most 20000"):
        client.upsert_items([Item(item_id="x", title="x", description="x" * 20_001)])


def test_live_items_survive_a_restart(tmp_path, folder, model_folder):
    options = ["--model", str(model_folder)]
    with running_server(folder / "store", tmp_path / "data", *options) as server, Client(server.address) as client:
        kept = make_item(
            "kept",
            "Asteroid miners in deep space",
            price=4.5,
            available_from=datetime(2020, 5, 17, 12, 0, 0, 250_000, UTC),
            available_until=datetime(2120, 5, 17, tzinfo=UTC),
            attributes={"size": 42, "sale": True, "colour": "red"},
        )
        client.upsert_items([kept])
        client.upsert_items([Item(item_id="space-1", title="Red Planet Colony: now a love story of two bakers")])
        client.delete_items(["western-0"])
        token = client.record_event("u", "kept", "purchase")
        before = client.recommend("u", count=30)
    with running_server(folder / "store", tmp_path / "data", *options) as server, Client(server.address) as client:
        after = client.recommend("u", count=30, version_token=token)
        assert [each.item_id for each in after.recommendations] == [each.item_id for each in before.recommendations]
        assert "western-0" not in [each.item_id for each in after.recommendations]
        assert "two bakers" in client.get_item("space-1").item.title
        assert client.serving_status().shards[0].delta_item_count == 2
        assert client.get_item("kept").item == kept
        asked = item_filter(number_range("price", max=4.5), attribute_in("colour", "red"))
        assert [each.item_id for each in client.recommend("v", filter=asked).recommendations] == ["kept"]
        late = datetime(2120, 5, 17, tzinfo=UTC)
        assert not client.recommend("v", filter=asked, request_time=late).recommendations


def test_live_events_reach_the_next_rebuild_and_its_snapshot_is_activated(client, folder, model_folder):
    rng = np.random.default_rng(0)
    events, undone = [], Event("fan-0", "romance-0", "purchase")
    for user in range(30):
        taste = list(FILMS)[user % 3]
        events += [Event(f"fan-{user}", f"{taste}-{n}", "purchase") for n in rng.choice(8, size=4, replace=False)]
    client.record_events([*events, events[0], undone])
    client.record_events([Event("fan-0", type="undo", undone_event_id=undone.event_id)])
    client.record_events([Event("forgotten", "space-1")])
    client.delete_profile("forgotten")

    for suffix in ("jsonl", "csv", "parquet"):
        said = heliotrope("events", "--data", folder / "data", "--out", folder / f"events.{suffix}")
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert f"wrote {len(rows)} events" in said
    ids = [row["event_id"] for row in rows]
    assert len(ids) == len(set(ids))
    assert {event.event_id for event in events} <= set(ids)
    assert undone.event_id not in ids
    assert "forgotten" not in {row["user_id"] for row in rows}

    before = SnapshotStore(folder / "store").open()
    build = ["build", "--model", model_folder, "--catalogue", folder / "films.csv", "--out", folder / "store"]
    heliotrope(*build, "--dimension", 16, "--quiet", "--events", folder / "events.parquet")
    after = SnapshotStore(folder / "store").open()
    assert after.version != before.version
    assert after.manifest.data.event_rows == len(rows)
    assert not np.allclose(after.vectors, before.vectors)

    swapped = client.activate_snapshot()
    assert swapped.snapshot_version == after.version
    answer = client.recommend("astronaut")
    assert answer.snapshot_version == after.version
    assert answer.recommendations[0].source == recommendation_pb2.SOURCE_PERSONAL


def test_a_snapshot_of_another_model_is_refused(client, folder, tmp_path):
    from heliotrope_indexer.snapshot import write_snapshot

    current = SnapshotStore(folder / "store").open()
    write_snapshot(
        tmp_path / "draft",
        items=[current.item(0)],
        vectors=np.ones((1, 4)),
        parameters=current.parameters,
        model_version="some-other-model",
    )
    store = SnapshotStore(folder / "store")
    foreign = store.publish(tmp_path / "draft")
    store.activate(current.version)
    with pytest.raises(FailedPreconditionError, match="some-other-model"):
        client.activate_snapshot(foreign)
