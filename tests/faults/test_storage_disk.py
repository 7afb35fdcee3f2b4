"""Engines and whole servers on a disk that fills up, cannot be written, or has damaged pages of a profile store."""

import subprocess
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heliotrope import Client, Event, RetryPolicy
from heliotrope.errors import UnavailableError
from heliotrope_server.answerer import Question
from heliotrope_server.errors import StorageFailedError
from heliotrope_server.record_log import RecordLog
from tests.end_to_end.running_server import RunningServer, refused_start, running_server
from tests.server import worlds

NOW_S = 1.7e9
USERS = [f"u{number}" for number in range(50)]


def fast_probe(folder):
    return RecordLog(folder, probe_interval_s=0.01)


async def test_a_checkpoint_that_does_not_fit_is_taken_again_and_loses_nobody(tmp_path, small_disk):
    served = worlds.catalogue(tmp_path)
    events = worlds.random_events(np.random.default_rng(0), 3000, users=50, now_s=NOW_S)
    world = {"wall_clock": lambda: NOW_S, "log_factory": fast_probe}
    async with worlds.engine(small_disk.folder, served, **world) as engine:
        await engine.record(events[:1000])
        await engine.checkpoint()
        await engine.record(events[1000:2000])
        small_disk.fill()
        for _ in range(3):
            await engine.checkpoint()
            assert engine.store.checkpoint_lsn == 1000
        assert engine.healthy
        assert engine.store.dirty_count == 50
        assert len((await engine.recommend(Question("u1", 5))).result.item_ids) == 5
        small_disk.free()
        await engine.record(events[2000:])
        await engine.checkpoint()
        assert engine.store.checkpoint_lsn == 3000
        wanted = {user: sorted(engine.profile(user).events.values()) for user in USERS}
        small_disk.fill()  # the end of the engine finds no room either
    small_disk.free()
    async with worlds.engine(small_disk.folder, served, **world) as engine:
        assert {user: sorted(engine.profile(user).events.values()) for user in USERS} == wanted


async def test_an_engine_recovers_on_a_full_disk_and_answers(tmp_path, small_disk):
    served = worlds.catalogue(tmp_path)
    events = worlds.random_events(np.random.default_rng(0), 2000, users=50, now_s=NOW_S)
    world = {"wall_clock": lambda: NOW_S, "log_factory": fast_probe}
    async with worlds.engine(small_disk.folder, served, crash=True, **world) as engine:
        await engine.record(events[:1000])
        await engine.checkpoint()
        await engine.record(events[1000:])
        wanted = {user: engine.profile(user).event_count for user in USERS}
    small_disk.fill()
    async with worlds.engine(small_disk.folder, served, crash=True, **world) as engine:
        assert {user: engine.profile(user).event_count for user in USERS} == wanted
        with pytest.raises(StorageFailedError, match="is full"):
            for number in range(100):
                await engine.record([event._replace(event_id=f"{number}-{event.event_id}") for event in events[:50]])
        assert (await engine.recommend(Question("u1", 5))).result.item_ids


def health(address):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_whose_disk_fills_up_refuses_events_answers_and_comes_back_by_itself(tmp_path, small_disk):
    worlds.publish(tmp_path / "store")
    options = ["--shards", "2", "--checkpoint-interval-s", "0.1", "--impression-log-share", "1"]
    server = RunningServer(tmp_path / "store", small_disk.folder / "data", *options)
    acknowledged = set()
    once = RetryPolicy(max_attempts=1)
    with Client(server.address, retry=once) as client:

        def record(number):
            """A batch for both shards; notes what was acknowledged, returns why the rest was refused."""
            events = [Event(user, f"i{number % 200}", event_id=f"{number}-{user}") for user in USERS]
            try:
                results = client.record_events(events).results
            except UnavailableError as error:
                return {error.reason}
            acknowledged.update(result.event_id for result in results if not result.error.reason)
            return {result.error.reason for result in results} - {""}

        for number in range(20):
            assert record(number) == set()
        small_disk.fill()
        number = 20
        while record(number) != {"DISK_FULL"}:  # what is left of the last page takes some
            number += 1
        wait_until(lambda: health(server.address) == health_pb2.HealthCheckResponse.NOT_SERVING)
        for user in USERS:
            assert len(client.recommend(user, count=5).recommendations) == 5
        refused = number
        small_disk.free()
        wait_until(lambda: record(refused) == set())
        wait_until(lambda: health(server.address) == health_pb2.HealthCheckResponse.SERVING)
        logged = len(acknowledged)
        assert record(refused + 1) == set()
        assert len(acknowledged) == logged + len(USERS)

        def stored():
            return {event.event_id for user in USERS for event in list(client.export_profile(user))[1:]}

        found = stored()
        assert acknowledged <= found
        wait_until(lambda: any("can be written again" in line for line in server.messages))
    assert server.stop() == 0
    again = running_server(tmp_path / "store", small_disk.folder / "data", *options)
    with again as server, Client(server.address) as client:
        assert stored() == found


def test_a_disk_that_cannot_be_written_ends_the_start_with_one_line(tmp_path):
    worlds.publish(tmp_path / "store", items=10)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        code, message = refused_start(tmp_path / "store", disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert code == 1
    assert f"the data folder {disk} cannot be used: Read-only file system" in message
    assert "Traceback" not in message
