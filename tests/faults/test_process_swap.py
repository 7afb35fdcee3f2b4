"""Shards that die, stop or are restarted around a switch of the snapshot: all of them serve one, without help."""

import contextlib
import os
import random
import signal
import threading
import time

import pytest

from heliotrope import Client, Event, RetryPolicy
from heliotrope.errors import ServerError, UnavailableError
from heliotrope_indexer.snapshot import SnapshotStore
from tests.end_to_end.running_server import RunningServer, running_server
from tests.faults.process_world import LONG
from tests.faults.stray_files import strays
from tests.server import worlds

ROUNDS = 100 if LONG else 3
SHARDS = 2
USERS = [f"user-{number}" for number in range(20)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two snapshots of the same items."""
    folder = tmp_path_factory.mktemp("swap") / "store"
    for seed in range(2):
        worlds.publish(folder, seed=seed, items=3_000)
    return folder


def settled(client):
    """The one version that all shards serve, as soon as all of them answer and agree."""
    deadline = time.monotonic() + 60
    while True:
        try:
            shards = client.serving_status(timeout_s=60.0).shards
        except UnavailableError:
            continue  # the shard that was asked died as well
        versions = {shard.snapshot_version for shard in shards}
        if len(versions) == 1 and all(shard.reachable for shard in shards):
            return versions.pop()
        assert time.monotonic() < deadline, f"the shards stay with {versions}"


def test_a_shard_that_dies_after_a_build_comes_back_with_what_the_others_serve(tmp_path):
    first = worlds.publish(tmp_path / "store", seed=0)
    with running_server(tmp_path / "store", tmp_path / "data", "--shards", "2") as server:
        second = worlds.publish(tmp_path / "store", seed=1)  # CURRENT has moved, and nobody told the server
        with Client(server.address, timeout_s=60.0) as client:
            for pid in server.shard_pids():
                os.kill(pid, signal.SIGKILL)
                assert client.recommend_batch(USERS, count=1)[0].recommendations
                assert settled(client) == first
            assert client.activate_snapshot().snapshot_version == second
            assert settled(client) == second


def test_kills_around_a_switch_leave_all_shards_with_one_snapshot(tmp_path, store):
    rng = random.Random(6)
    versions = SnapshotStore(store).versions()
    server = RunningServer(store, tmp_path / "data", "--shards", str(SHARDS))
    for turn in range(ROUNDS):
        wanted = versions[turn % 2]
        with Client(server.address, timeout_s=60.0, retry=RetryPolicy(max_attempts=1)) as client:
            before = settled(client)

            def switch(client=client, wanted=wanted):
                with contextlib.suppress(ServerError):  # the shard that was asked died
                    client.activate_snapshot(wanted)

            switching = threading.Thread(target=switch)
            switching.start()
            time.sleep(rng.uniform(0.0, 0.15))
            for pid in rng.sample(server.shard_pids(), rng.choice([1, 1, SHARDS])):
                os.kill(pid, signal.SIGKILL)
            switching.join(timeout=60)
            assert not switching.is_alive()
            assert settled(client) in {before, wanted}
        if turn % 5 == 2:
            # The whole server, in the middle of a switch or not.
            rng.choice([server.kill_supervisor, server.kill_everything])()
            server = RunningServer(store, tmp_path / "data", "--shards", str(SHARDS))
            with Client(server.address, timeout_s=60.0) as client:
                assert settled(client) == SnapshotStore(store).current()
    with Client(server.address, timeout_s=60.0) as client:
        for wanted in versions:
            assert client.activate_snapshot(wanted).snapshot_version == wanted
            assert settled(client) == wanted
    assert server.stop() == 0, "".join(server.messages)
    SnapshotStore(store).activate(versions[0])
    assert strays(store) == []


def test_a_shard_that_is_stopped_during_a_switch_follows_when_it_goes_on(tmp_path, store):
    rng = random.Random(8)
    versions = SnapshotStore(store).versions()
    with running_server(store, tmp_path / "data", "--shards", str(SHARDS)) as server:
        pids = server.shard_pids()
        once = RetryPolicy(max_attempts=1)
        with Client(server.address, timeout_s=30.0, retry=once) as client:
            failed = 0
            for turn in range(ROUNDS):
                before, wanted = settled(client), versions[turn % 2]
                # The first time at once, so that one switch fails at least.
                delay_s = rng.uniform(0.0, 0.1) if turn else 0.0
                stopped = threading.Timer(delay_s, os.kill, (rng.choice(pids), signal.SIGSTOP))
                stopped.start()
                try:
                    client.activate_snapshot(wanted, timeout_s=1.0)
                except ServerError:
                    failed += 1
                stopped.join()
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                assert settled(client) in {before, wanted}
            assert failed
            client.record_events([Event(user, "i1") for user in USERS])
            assert len(client.recommend_batch(USERS, count=1)) == len(USERS)
