"""A real server with two shards, called through the real client."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from heliotrope import Client, Event, RetryPolicy, Tls
from heliotrope.errors import (
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    VersionNotAvailableError,
)
from heliotrope.v1 import event_pb2, event_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from tests.end_to_end.running_server import RunningServer, refused_start, running_server
from tests.server import worlds

USERS = [f"user-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder):
    worlds.publish(folder / "store")
    with running_server(folder / "store", folder / "data", "--shards", "2") as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


def shard_clients(client):
    """One client for each shard's own address, which sends everything there."""
    return [Client(shard.address, direct=False) for shard in client.serving_status().shards]


def test_status_shows_both_shards_and_covers_every_slot(client, server):
    status = client.serving_status()
    assert [shard.shard_index for shard in status.shards] == [0, 1]
    assert all(shard.reachable and shard.retriever == "exact" for shard in status.shards)
    assert status.shards[0].first_slot == 0
    assert status.shards[0].end_slot == status.shards[1].first_slot
    assert status.shards[1].end_slot == status.slot_count
    assert "(2 shards)" in server.ready_line


def test_a_token_is_honoured_by_whichever_shard_is_asked(client):
    shards = shard_clients(client)
    for number, user in enumerate(USERS):
        writer, reader = shards[number % 2], shards[(number + 1) % 2]
        item = f"i{number}"
        receipt = writer.record_events([Event(user, item, "favorite", event_id="first")])
        answer = reader.recommend(user, count=200, version_token=receipt.version_token(user), seen="exclude")
        assert item not in [each.item_id for each in answer.recommendations]
        assert answer.profile_version == receipt.version_token(user)
        assert answer.recommendations[0].source == recommendation_pb2.SOURCE_PERSONAL
    for shard in shards:
        shard.close()


def test_a_batch_over_both_shards_comes_back_in_order(client):
    one_shard = shard_clients(client)[0]

    def items(answer):
        return [each.item_id for each in answer.recommendations]

    # The shards hear of each other's events within a fraction of a second, and until then may answer differently.
    deadline = time.monotonic() + 30.0
    while True:
        together = [items(answer) for answer in one_shard.recommend_batch(USERS, count=3)]
        alone = [items(client.recommend(user, count=3)) for user in USERS]
        if together == alone or time.monotonic() > deadline:
            break
    assert together == alone
    one_shard.close()


def test_streams_answer_in_order_and_go_on_after_an_error(client):
    requests = [
        recommendation_pb2.RecommendRequest(user_id="user-1", count=2),
        recommendation_pb2.RecommendRequest(user_id="user-1", count=0),
        recommendation_pb2.RecommendRequest(user_id="user-2", count=4),
    ]
    first, refused, last = client.recommend_stream(requests)
    assert len(first.recommendations) == 2
    assert isinstance(refused, ServerError) and refused.reason == "INVALID_COUNT"
    assert len(last.recommendations) == 4

    batches = [[Event("user-1", "i3", event_id="s1")], [Event("user-2", "no-such-item", event_id="s2")]]
    receipts = list(client.record_stream(batches))
    assert receipts[0].results[0].outcome == event_pb2.EVENT_OUTCOME_RECORDED
    assert receipts[1].rejected[0].error.reason == "ITEM_NOT_FOUND"


def test_a_reader_that_leaves_in_mid_stream_takes_nothing_with_it(client):
    asked = client.recommend_stream((USERS[number % 24] for number in range(5_000)), count=5)
    first = [next(asked) for _ in range(3)]
    asked.close()
    again = list(client.recommend_stream(USERS[:3], count=5))
    assert [[each.item_id for each in answer.recommendations] for answer in again] == [
        [each.item_id for each in answer.recommendations] for answer in first
    ]


def test_popularity_reaches_the_other_shard(client):
    item = "i150"
    before = [shard.get_item(item).live_event_count for shard in shard_clients(client)]
    client.record_events([Event(f"fan-{number}", item) for number in range(40)])
    # The shards tell each other every quarter of a second; polling is bounded.
    deadline = time.monotonic() + 10
    while True:
        after = [shard.get_item(item).live_event_count for shard in shard_clients(client)]
        if all(now >= then + 39.9 for now, then in zip(after, before, strict=True)):
            return
        assert time.monotonic() < deadline, (before, after)
        time.sleep(0.05)


def test_profiles_are_exported_and_forgotten(client):
    user = "leaving"
    client.record_events([Event(user, f"i{number}", event_id=f"x{number}") for number in range(5)])
    profile, *events = client.export_profile(user)
    assert profile.remembered_event_count == 5
    assert [event.event_id for event in events] == [f"x{number}" for number in range(5)]
    assert client.delete_profile(user) == 5
    assert client.get_profile(user).remembered_event_count == 0
    assert client.recommend(user).recommendations[0].source == recommendation_pb2.SOURCE_POPULAR


def test_health_and_reflection_are_served(server):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=5))
        names = {service.name for service in listed.list_services_response.service}
        assert "heliotrope.v1.RecommendationService" in names
        assert not any("internal" in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "reason", "limit"),
    [
        ({"user_id": "u", "count": 0}, "INVALID_COUNT", "1000"),
        ({"user_id": "u", "count": 10_000}, "INVALID_COUNT", "1000"),
        ({"user_id": ""}, "INVALID_USER_ID", "256"),
        ({"user_id": "é" * 129}, "INVALID_USER_ID", "256"),
        ({"user_id": "u", "excluded_item_ids": ["x"] * 10_001}, "TOO_MANY_EXCLUDED_ITEMS", "10000"),
        ({"user_id": "u", "version_token": "nonsense"}, "INVALID_VERSION_TOKEN", None),
    ],
)
def test_bad_questions_are_refused_with_their_limit(client, arguments, reason, limit):
    with pytest.raises(InvalidRequestError) as caught:
        client.recommend(**arguments)
    assert caught.value.reason == reason
    assert caught.value.metadata.get("limit") == limit


def test_a_token_of_another_store_is_an_error(client):
    with pytest.raises(VersionNotAvailableError):
        client.recommend("u", version_token="g-somewhere-else.0:1")


@pytest.mark.parametrize(
    ("event", "reason", "limit"),
    [
        (Event("u", "unknown-item"), "ITEM_NOT_FOUND", None),
        (Event("", "i1"), "INVALID_USER_ID", "256"),
        (Event("u", ""), "INVALID_ITEM_ID", "256"),
        (Event("u", "i1", event_id="e" * 129), "INVALID_EVENT_ID", "128"),
        (Event("u", "i1", "rating"), "INVALID_VALUE", None),
        (Event("u", "i1", "rating", value=float("nan")), "INVALID_VALUE", "10.0"),
        (Event("u", "i1", "click", value=float("inf")), "INVALID_VALUE", "100.0"),
        (Event("u", "i1", "click", value=-1.0), "INVALID_VALUE", "100.0"),
        (Event("u", "i1", time=0.0), "EVENT_TIME_TOO_OLD", "604800.0"),
        (Event("u", "i1", time=4e9), "EVENT_TIME_IN_FUTURE", "300.0"),
        (Event("u", "i1", "undo", undone_event_id="e"), "INVALID_UNDO", None),
        (Event("u", "", "undo"), "INVALID_UNDONE_EVENT_ID", "128"),
    ],
)
def test_a_bad_event_is_refused_with_its_limit_and_loses_no_other(client, event, reason, limit):
    good = Event("bystander", "i2")
    receipt = client.record_events([event, good])
    assert receipt.results[0].outcome == event_pb2.EVENT_OUTCOME_REJECTED
    assert receipt.results[0].error.reason == reason
    assert receipt.results[0].error.metadata.get("limit") == limit
    assert receipt.results[1].outcome == event_pb2.EVENT_OUTCOME_RECORDED


def test_an_event_of_unspecified_type_and_an_empty_batch_are_refused(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = event_pb2_grpc.EventServiceStub(channel)
        event = event_pb2.Event(event_id="e", user_id="u", item_id="i1")
        answer = stub.RecordEvents(event_pb2.RecordEventsRequest(events=[event]), timeout=5)
        assert answer.results[0].error.reason == "INVALID_EVENT_TYPE"
        assert answer.version_token == ""
        for size in (0, 1001):
            with pytest.raises(grpc.RpcError, match=f"1 to 1000 events, not {size}"):
                stub.RecordEvents(event_pb2.RecordEventsRequest(events=[event] * size), timeout=5)
        batch = recommendation_pb2.BatchRecommendRequest(
            requests=[recommendation_pb2.RecommendRequest(user_id="u", count=1)] * 257
        )
        with pytest.raises(grpc.RpcError, match="1 to 256 requests, not 257"):
            recommendation_pb2_grpc.RecommendationServiceStub(channel).BatchRecommend(batch, timeout=5)


def test_history_is_taken_on_request_and_only_once(client):
    old = [Event("historian", f"i{number}", time=1e9 + number, event_id=f"h{number}") for number in range(3)]
    assert len(client.record_events(old).rejected) == 3
    assert client.record_events(old, history_import=True).rejected == []
    again = client.record_events(old, history_import=True)
    assert {result.outcome for result in again.results} == {event_pb2.EVENT_OUTCOME_DUPLICATE}


def test_without_a_model_what_needs_it_says_so(client):
    for call in (
        lambda: client.search_items("anything"),
        lambda: client.update_profile("u", declared_interests=["chess"]),
    ):
        with pytest.raises(FailedPreconditionError, match="start the server with --model"):
            call()


def test_a_text_of_ten_megabytes_is_refused_with_the_limit(client):
    with pytest.raises(InvalidRequestError, match="1 to 2000 characters"):
        client.update_profile("u", declared_interests=["x" * 10_000_000])


def test_an_unknown_item_is_not_found_and_deleting_it_deletes_nothing(client):
    with pytest.raises(NotFoundError, match="no item 'nothing'"):
        client.get_item("nothing")
    with pytest.raises(NotFoundError):
        client.delete_items(["i199", "nothing"])
    assert client.get_item("i199").item.item_id == "i199"


def test_removed_items_are_gone_on_every_shard_and_the_list_pages_through_the_rest(client):
    client.delete_items(["i198"])
    for shard in shard_clients(client):
        listed = [item.item_id for item in shard.list_items(page_size=64)]
        assert "i198" not in listed
        assert len(listed) == len(set(listed)) == 199
        everything = shard.recommend("nobody", count=1000)
        assert "i198" not in [each.item_id for each in everything.recommendations]


def test_a_snapshot_is_activated_and_rolled_back_without_a_restart(client, folder):
    first = client.serving_status().shards[0].snapshot_version
    client.record_events([Event(user, "i10", "purchase") for user in USERS])
    second = worlds.publish(folder / "store", items=260, seed=1)
    assert client.list_snapshots()[0].item_count == 260
    swapped = client.activate_snapshot()
    assert (swapped.snapshot_version, swapped.previous_snapshot_version) == (second, first)
    for shard in client.serving_status().shards:
        assert shard.snapshot_version == second
    for user in USERS:
        answer = client.recommend(user, count=250, explain=True)
        ids = [each.item_id for each in answer.recommendations]
        assert answer.snapshot_version == second
        assert "i259" in ids and "i10" not in ids and "i198" not in ids
        assert answer.recommendations[0].source == recommendation_pb2.SOURCE_PERSONAL
    assert client.roll_back_snapshot() == first
    assert client.recommend("user-1").snapshot_version == first


@pytest.mark.parametrize("version", ["20200101T000000Z-0123456789ab", "../../etc", "x"])
def test_a_wrong_snapshot_is_refused_and_the_old_one_goes_on(client, version):
    before = client.serving_status().shards[0].snapshot_version
    with pytest.raises(FailedPreconditionError) as caught:
        client.activate_snapshot(version)
    assert caught.value.reason == "SNAPSHOT_UNUSABLE"
    assert client.recommend("user-1").snapshot_version == before


def test_a_damaged_snapshot_is_refused_and_the_old_one_goes_on(client, folder):
    before = client.serving_status().shards[0].snapshot_version
    damaged = worlds.publish(folder / "store", items=50, seed=9)
    path = folder / "store" / damaged / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FailedPreconditionError, match=r"vectors\.npy .* is corrupt"):
        client.activate_snapshot(damaged)
    assert client.recommend("user-1").snapshot_version == before


def test_another_server_on_the_same_data_is_refused(server, folder):
    code, message = refused_start(folder / "store", folder / "data")
    assert code == 1
    assert "in use by another server" in message


def test_a_port_in_use_is_named(tmp_path, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, message = refused_start(folder / "store", tmp_path / "data", "--port", str(port))
    assert code == 1
    assert f"127.0.0.1:{port} cannot be listened on" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--model", "/nowhere/model"], 1, "/nowhere/model"),
        (["--shards", "0"], 2, "--shards"),
        (["--port", "70000"], 2, "--port"),
        (["--tls-key", "/nowhere/key.pem"], 2, "tls_certificate"),
    ],
)
def test_settings_that_cannot_be_end_the_start_with_one_line(tmp_path, options, code, named):
    worlds.publish(tmp_path / "store", items=10)
    found, message = refused_start(tmp_path / "store", tmp_path / "data", *options)
    assert found == code
    assert named in message
    assert "Traceback" not in message


def test_a_missing_store_ends_the_start_with_one_line(tmp_path):
    code, message = refused_start(tmp_path / "nothing", tmp_path / "data")
    assert code == 1
    assert "no snapshot store" in message
    assert "Traceback" not in message


def test_another_number_of_shards_keeps_every_profile_and_honours_old_tokens(tmp_path):
    worlds.publish(tmp_path / "store", live_popularity_weight=0.0)
    tokens, answers = {}, {}
    asked_s = time.time()
    with running_server(tmp_path / "store", tmp_path / "data", "--shards", "2") as server, Client(server.address) as c:
        for number, user in enumerate(USERS):
            receipt = c.record_events([Event(user, f"i{number}"), Event(user, f"i{number + 50}", "dislike")])
            tokens[user] = receipt.version_token(user)
        for user in USERS:
            answers[user] = c.recommend(user, count=20, request_time=asked_s + 60)
    for shards in ("3", "1"):
        again = running_server(tmp_path / "store", tmp_path / "data", "--shards", shards)
        with again as server, Client(server.address) as c:
            for user in USERS:
                answer = c.recommend(user, count=20, version_token=tokens[user], request_time=asked_s + 60)
                wanted = answers[user].recommendations
                assert [each.item_id for each in answer.recommendations] == [each.item_id for each in wanted]
                for found, expected in zip(answer.recommendations, wanted, strict=True):
                    assert found.score == pytest.approx(expected.score, rel=1e-4)
            assert sum(shard.profile_count for shard in c.serving_status().shards) == len(USERS)


def test_tls_is_spoken_when_a_certificate_is_given(tmp_path):
    worlds.publish(tmp_path / "store", items=10)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    options = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    with running_server(tmp_path / "store", tmp_path / "data", *options) as server:
        with Client(server.address, tls=Tls(root_certificate=certificate)) as client:
            assert len(client.recommend("u", count=3).recommendations) == 3
        plain = Client(server.address, timeout_s=1.0, retry=RetryPolicy(max_attempts=1))
        with plain, pytest.raises(ServerError):
            plain.recommend("u")


def test_a_drain_lets_running_calls_finish_and_the_next_start_needs_no_replay(tmp_path):
    worlds.publish(tmp_path / "store")
    with running_server(tmp_path / "store", tmp_path / "data") as server, Client(server.address) as client:
        client.record_events([Event("u", "i1", event_id="e1")])
    restarted = RunningServer(tmp_path / "store", tmp_path / "data")
    with Client(restarted.address) as client:
        assert client.get_profile("u").remembered_event_count == 1
    assert restarted.stop() == 0
    assert not any("replayed" in line for line in restarted.messages)


def test_a_server_that_starts_while_orphaned_shards_still_drain_waits_for_them(tmp_path):
    worlds.publish(tmp_path / "store")
    first = RunningServer(tmp_path / "store", tmp_path / "data", "--shards", "2")
    with Client(first.address) as client:
        client.record_events([Event(user, "i1", event_id="e1") for user in USERS])
    first.kill_supervisor()
    second = running_server(tmp_path / "store", tmp_path / "data", "--shards", "2")
    with second as server, Client(server.address) as client:
        receipt = client.record_events([Event(user, "i1", event_id="e1") for user in USERS])
        assert {result.outcome for result in receipt.results} == {event_pb2.EVENT_OUTCOME_DUPLICATE}


def test_the_command_lists_its_options():
    done = subprocess.run(
        [sys.executable, "-m", "heliotrope", "serve", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--snapshots", "--data", "--shards", "--event-window-s", "--tls-certificate"):
        assert option in done.stdout


def test_the_data_folder_of_another_format_is_refused(tmp_path):
    worlds.publish(tmp_path / "store", items=10)
    data = Path(tmp_path / "data")
    data.mkdir()
    (data / "layout.json").write_text('{"format_version": 99}')
    code, message = refused_start(tmp_path / "store", data)
    assert code == 1
    assert "format version 99; this server reads 1" in message
