"""A shard that is stopped, neither dead nor answering: others answer, its own callers are told by their deadline."""

import os
import signal
import time

import pytest

from heliotrope import Client, Event, Item, RetryPolicy
from heliotrope.errors import DeadlineExceededError, ServerError, UnavailableError
from heliotrope_server.peers import slot_of
from tests.faults.process_world import tiny_world

USERS = [f"user-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory)


def owners(client):
    """Index of the shard that owns each user."""
    shards = client.serving_status().shards
    return {
        user: shard.shard_index
        for user in USERS
        for shard in shards
        if shard.first_slot <= slot_of(user) < shard.end_slot
    }


def pid_of_shard(server, index):
    """The process that has files of a shard's folder open."""
    for pid in server.shard_pids():
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            except FileNotFoundError:
                continue
            if f"/shard-{index:03d}/" in target:
                return pid
    raise AssertionError(f"no process has a file of shard {index} open")


def test_a_stopped_shard_fails_its_own_users_by_their_deadline_and_nobody_else(tmp_path, world):
    server = world.server(tmp_path / "data", "--shards", "2")
    once = RetryPolicy(max_attempts=1)
    with Client(server.address, timeout_s=30.0) as client:
        owner = owners(client)
        zero, one = ([user for user in USERS if owner[user] == index] for index in (0, 1))
        entry = client.serving_status().shards[0].address
        with Client(entry, direct=False, retry=once) as through_zero:
            stopped = pid_of_shard(server, 1)
            os.kill(stopped, signal.SIGSTOP)
            try:
                for user in zero:
                    assert through_zero.recommend(user, count=3, timeout_s=20.0).recommendations
                    assert through_zero.record_event(user, "i2", timeout_s=20.0)
                for user in one[:3]:
                    began = time.monotonic()
                    with pytest.raises((DeadlineExceededError, UnavailableError)):
                        through_zero.recommend(user, count=3, timeout_s=0.5)
                    # Told by the deadline, whatever the machine adds.
                    assert time.monotonic() - began < 20.0
                with pytest.raises((DeadlineExceededError, UnavailableError)):
                    through_zero.record_event(one[0], "i3", event_id="while-stopped", timeout_s=0.5)
                answers = through_zero.recommend_batch([zero[0], one[0]], count=3, timeout_s=2.0)
                assert answers[0].recommendations and isinstance(answers[1], ServerError)
                reachable = {
                    shard.shard_index: shard.reachable for shard in through_zero.serving_status(timeout_s=20.0).shards
                }
                assert reachable == {0: True, 1: False}
                with pytest.raises((DeadlineExceededError, UnavailableError)):
                    through_zero.upsert_items([Item(item_id="stopped", title="made meanwhile")], timeout_s=1.0)
            finally:
                os.kill(stopped, signal.SIGCONT)
            for user in one:
                assert through_zero.recommend(user, count=3, timeout_s=20.0).recommendations
            # Sent again with its id it counts once, whether or not the first try went through in the end.
            token = client.record_events([Event(one[0], "i3", event_id="while-stopped")]).version_token(one[0])
            assert token and client.recommend(one[0], version_token=token).recommendations
            _, *events = client.export_profile(one[0])
            assert [event.event_id for event in events].count("while-stopped") == 1
        # What was written while one shard slept is on both.
        assert client.upsert_items([Item(item_id="after", title="made afterwards")]).created_count == 1
        for shard in client.serving_status().shards:
            with Client(shard.address, direct=False) as each:
                assert each.get_item("after").item.title == "made afterwards"
                assert each.get_item("stopped").item.title == "made meanwhile"
    assert server.stop() == 0, "".join(server.messages)
