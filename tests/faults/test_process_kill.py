"""kill -9 of shards while events and items stream in, and of the rebuild, at random moments.

tests/end_to_end/test_kill.py does the same to events alone, and looks at their counts; here items are written too, and
nothing may be left lying about.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heliotrope import Client, Item, RetryPolicy
from heliotrope.errors import ServerError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.event_export import export_events
from tests.end_to_end.test_kill import USERS, Writer, wait_for_progress
from tests.faults.process_world import LONG, tiny_world
from tests.faults.stray_files import socket_folders, strange_files, strays

KILLS = 500 if LONG else 16
REBUILD_KILLS = 60 if LONG else 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory)


class ItemWriter(threading.Thread):
    """Adds items without pause and notes which were acknowledged. What failed is sent again as it was."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.failure: BaseException | None = None
        self._address = address
        self._stop_event = stop

    def run(self) -> None:
        try:
            retry = RetryPolicy(max_attempts=1)
            with Client(self._address, direct=False, timeout_s=5.0, retry=retry) as client:
                while not self._stop_event.is_set():
                    number = len(self.acknowledged)
                    item = Item(item_id=f"new-{number}", title=f"item number {number * 7919}")
                    try:
                        client.upsert_items([item], timeout_s=5.0)
                    except ServerError:
                        continue
                    self.acknowledged[item.item_id] = item.title
        except BaseException as error:
            self.failure = error


@pytest.mark.parametrize("seed", [3])
def test_acknowledged_events_and_items_outlive_kills_and_leave_nothing_behind(tmp_path, world, seed):
    rng = random.Random(seed)
    options = ["--shards", "2", "--checkpoint-interval-s", "0.3", "--ring-size", "100000"]
    server = world.server(tmp_path / "data", *options)
    with Client(server.address) as client:
        # The users of the writer take items that are there.
        client.upsert_items([Item(item_id=f"i{number}", title=f"title {number}") for number in range(200)])
    stop = threading.Event()
    writers = [Writer(server.address, number, stop) for number in range(2)]
    items = ItemWriter(server.address, stop)
    for thread in [*writers, items]:
        thread.start()
    killed = 0
    while killed < KILLS:
        wait_for_progress(writers, server)
        for pid in rng.sample(server.shard_pids(), 2):
            time.sleep(rng.uniform(0.0, 0.2))
            # An acknowledgement that was on its way can hide that the shard is dead already, and now gone.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    stop.set()
    for thread in [*writers, items]:
        thread.join(timeout=60)
        assert not thread.is_alive() and thread.failure is None, thread.failure
    assert items.acknowledged and all(writer.acknowledged for writer in writers)
    found = stored_events(server.address)
    for writer in writers:
        assert writer.acknowledged.items() <= found.items()
    assert found.items() <= {key: value for writer in writers for key, value in writer.sent.items()}.items()
    assert_items_are_served(server.address, items.acknowledged)
    assert healthy(server.address)
    assert server.stop() == 0, "".join(server.messages)
    # No shard died of anything else.
    ends = [message for message in server.messages if "ended unexpectedly" in message]
    assert ends and all("(exit code -9)" in message for message in ends), ends
    assert not any("Traceback" in message for message in server.messages), "".join(server.messages)

    server = world.server(tmp_path / "data", *options)
    assert stored_events(server.address) == found
    assert_items_are_served(server.address, items.acknowledged)
    assert server.stop() == 0, "".join(server.messages)
    # What the next rebuild learns from.
    export_events(tmp_path / "data", tmp_path / "events.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(found)
    assert {row["event_id"]: (row["user_id"], row["item_id"]) for row in rows} == found
    assert strays(tmp_path / "data") == strange_files(tmp_path / "data") == socket_folders(tmp_path / "data") == []


def stored_events(address):
    """User and item of every event that a profile holds, by event id; fails where one is there twice."""
    found = {}
    with Client(address, timeout_s=60.0) as client:
        for user in USERS:
            profile, *events = client.export_profile(user)
            assert profile.remembered_event_count == len(events)
            for event in events:
                assert event.event_id not in found
                found[event.event_id] = (event.user_id, event.item_id)
    return found


def assert_items_are_served(address, titles):
    """Every item once on every shard, and found by its title."""
    with Client(address, timeout_s=60.0) as client:
        addresses = [shard.address for shard in client.serving_status().shards]
    for each in addresses:
        with Client(each, direct=False, timeout_s=60.0) as one:
            listed = [(item.item_id, item.title) for item in one.list_items()]
            assert len(listed) == len({item_id for item_id, _ in listed})
            assert titles.items() <= dict(listed).items()
            for item_id in random.Random(2).sample(sorted(titles), min(len(titles), 20)):
                assert item_id in [match.item.item_id for match in one.search_items(titles[item_id], count=3)]


def healthy(address):
    with grpc.insecure_channel(address) as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status
    return status == health_pb2.HealthCheckResponse.SERVING


def test_a_rebuild_that_is_killed_leaves_a_whole_store_and_the_next_one_ends(tmp_path, world):
    rng = random.Random(4)
    store = tmp_path / "store"
    began = time.monotonic()
    subprocess.run(world.build_command(store), check=True, capture_output=True, timeout=300)
    length_s = time.monotonic() - began
    for number in range(REBUILD_KILLS):
        # Another seed makes another snapshot, so that there is something to do.
        before = SnapshotStore(str(store)).current()
        build = subprocess.Popen(
            world.build_command(store, "--seed", str(number + 1)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3, 1.1) * length_s)
        build.kill()
        ended = build.wait()
        version = SnapshotStore(str(store)).current()
        assert version == before or ended == 0 or version in SnapshotStore(str(store)).versions()
        SnapshotStore(str(store)).open()  # checks every hash
    command = world.build_command(store, "--seed", "1000")
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for version in SnapshotStore(str(store)).versions():
        SnapshotStore(str(store)).open(version)
    assert strays(store) == []
