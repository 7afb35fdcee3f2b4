"""Shards that cannot reach each other: each answers its own users, names who is missing, and heals by itself.

Shards speak over Unix sockets, so what can be cut is a connection, between messages or within one, and the socket file.
"""

import os
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from heliotrope import Client, Event, Item, RetryPolicy
from heliotrope.errors import DeadlineExceededError, ServerError, UnavailableError
from heliotrope_server.supervisor import socket_prefix
from tests.faults.cutting_proxy import CuttingProxy
from tests.faults.process_world import LONG, tiny_world
from tests.faults.test_process_stop import USERS, owners, pid_of_shard

TEARS = 300 if LONG else 6
ONCE = RetryPolicy(max_attempts=1)
BRIEF_S = 2.5


@pytest.fixture
def two_shards(tmp_path, tmp_path_factory):
    """A server, and the users of its shards 0 and 1."""
    server = tiny_world(tmp_path_factory).server(tmp_path / "data", "--shards", "2")
    with Client(server.address, timeout_s=30.0) as client:
        owner = owners(client)
    yield server, *([user for user in USERS if owner[user] == index] for index in (0, 1))
    assert server.stop() == 0, "".join(server.messages)


def socket_of(data, index):
    (folder,) = Path(tempfile.gettempdir()).glob(f"{socket_prefix(data)}*")
    return folder / f"shard-{index}.sock"


def restart(server, index, address):
    """Kills a shard, so that it connects anew, and waits until it is there again."""
    os.kill(pid_of_shard(server, index), signal.SIGKILL)
    until(lambda: pid_of_shard(server, index) and answers(address))


def answers(address):
    with Client(address, direct=False, retry=ONCE) as client:
        return client.serving_status(timeout_s=30.0).shards


def until(condition):
    """Waits for what comes by itself; a server that does not answer yet counts as no."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except (ServerError, AssertionError):
            pass
        assert time.monotonic() < deadline, "a minute has passed"
        time.sleep(0.02)


def assert_alone(client, own, others, item, refusals):
    """Shard 0 answers its users, and says by their deadline that what concerns the others cannot be done."""

    def refused(call):
        with pytest.raises(refusals):
            call()

    def told_apart():
        answered, missing = client.recommend_batch([own[0], others[0]], count=3, timeout_s=BRIEF_S)
        assert answered.recommendations and isinstance(missing, refusals)

    def recorded_apart():
        receipt = client.record_events([Event(own[0], "i4"), Event(others[0], "i4")], timeout_s=BRIEF_S)
        assert [bool(result.error.reason) for result in receipt.results] == [False, True]

    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(told_apart),
            pool.submit(recorded_apart),
            pool.submit(refused, lambda: client.recommend(others[0], timeout_s=BRIEF_S)),
            pool.submit(refused, lambda: client.record_event(others[0], "i3", event_id="meanwhile", timeout_s=BRIEF_S)),
            pool.submit(refused, lambda: client.update_profile(others[0], segments=["cut"], timeout_s=BRIEF_S)),
            # It is written, but not everywhere: no acknowledgement.
            pool.submit(refused, lambda: client.upsert_items([Item(item_id=item, title=item)], timeout_s=BRIEF_S)),
        ]
        for user in own[:5]:
            assert client.recommend(user, count=3, timeout_s=30.0).recommendations
            assert client.record_event(user, "i2", timeout_s=30.0)
        for each in waiting:
            each.result()
    shards = client.serving_status(timeout_s=30.0).shards
    assert [shard.reachable for shard in shards] == [True, False]


def test_a_cut_between_shards_is_named_and_heals_without_a_restart(tmp_path, two_shards):
    server, zero, one = two_shards
    addresses = [shard.address for shard in answers(server.address)]
    with CuttingProxy(socket_of(tmp_path / "data", 1)) as proxy:
        restart(server, 0, addresses[0])
        pids = server.shard_pids()
        with Client(addresses[0], direct=False, retry=ONCE) as client, Client(addresses[1], direct=False) as other:
            assert client.recommend(one[0], count=3, timeout_s=30.0).recommendations
            for number, (fault, refusals) in enumerate(
                [(proxy.cut, UnavailableError), (proxy.hold, (DeadlineExceededError, UnavailableError))]
            ):
                fault()
                name = f"cut {number}"
                assert_alone(client, zero, one, name, refusals)
                # The other shard asks for the item itself, on a connection of its own.
                until(lambda name=name: other.get_item(name).item.title == name)
                proxy.mend()
                assert client.recommend(one[0], count=3, timeout_s=30.0).recommendations
                assert client.record_event(one[0], "i3", event_id="meanwhile", timeout_s=30.0)
                _, *events = other.export_profile(one[0])
                assert [event.event_id for event in events].count("meanwhile") == 1
            assert [shard.reachable for shard in answers(addresses[0])] == [True, True]
        assert server.shard_pids() == pids


def test_connections_that_break_within_a_message_lose_and_double_nothing(tmp_path, two_shards):
    server, _, one = two_shards
    rng = random.Random(12)
    address = answers(server.address)[0].address
    acknowledged = set()
    with CuttingProxy(socket_of(tmp_path / "data", 1)) as proxy:
        restart(server, 0, address)
        with Client(address, direct=False, retry=ONCE, timeout_s=10.0) as client:
            for tear in range(TEARS):
                proxy.cut_after(rng.randrange(1, 6_000))
                for part in range(5):
                    batch = [Event(rng.choice(one), "i1", event_id=f"{tear}-{part}-{n}") for n in range(20)]
                    while batch:
                        try:
                            results = client.record_events(batch).results
                        except ServerError:
                            continue
                        acknowledged |= {result.event_id for result in results if not result.error.reason}
                        batch = [event for event in batch if event.event_id not in acknowledged]
            found = [event.event_id for user in one for event in list(client.export_profile(user))[1:]]
    assert len(found) == len(set(found)) == TEARS * 100
    assert set(found) == acknowledged


def test_a_socket_that_is_removed_is_made_again(tmp_path, two_shards):
    server, _, one = two_shards
    address = answers(server.address)[0].address
    removed = socket_of(tmp_path / "data", 1)
    removed.unlink()
    restart(server, 0, address)
    with Client(address, direct=False, retry=ONCE) as client:
        until(lambda: client.recommend(one[0], count=3, timeout_s=5.0).recommendations)
        # The whole folder, as by something that clears temporary files away.
        for path in removed.parent.iterdir():
            path.unlink()
        removed.parent.rmdir()
        restart(server, 0, address)
        until(lambda: client.recommend(one[0], count=3, timeout_s=5.0).recommendations)
        until(lambda: all(shard.reachable for shard in answers(answers(address)[1].address)))
