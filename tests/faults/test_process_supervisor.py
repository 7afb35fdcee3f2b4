"""kill -9 of the supervisor under load: the next one takes over its port and its data at once."""

import random
import socket
import threading
import time

from heliotrope import Client
from tests.end_to_end.running_server import RunningServer
from tests.end_to_end.test_kill import USERS, Writer, wait_for_progress
from tests.faults.process_world import LONG
from tests.faults.stray_files import socket_folders, strange_files, strays
from tests.faults.test_process_kill import healthy, stored_events
from tests.server import worlds

KILLS = 60 if LONG else 1


def free_ports(count):
    """The first of so many ports in a row that nobody listens on."""
    rng = random.Random()
    while True:
        first = rng.randrange(20_000, 32_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def test_a_killed_supervisor_is_replaced_at_once_and_nothing_is_lost(tmp_path):
    rng = random.Random(5)
    worlds.publish(tmp_path / "store")
    data = tmp_path / "data"
    options = ["--shards", "2", "--checkpoint-interval-s", "0.3", "--ring-size", "100000", "--port", str(free_ports(3))]
    server = RunningServer(tmp_path / "store", data, *options)
    stop = threading.Event()
    writers = [Writer(server.address, number, stop) for number in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(KILLS):
        wait_for_progress(writers, server)
        time.sleep(rng.uniform(0.0, 0.5))
        # With its shards, which cannot end in order then, or alone.
        rng.choice([server.kill_supervisor, server.kill_everything])()
        server = RunningServer(tmp_path / "store", data, *options)
    wait_for_progress(writers, server)
    stop.set()
    for writer in writers:
        writer.join(timeout=60)
        assert not writer.is_alive() and writer.failure is None, writer.failure
    found = stored_events(server.address)
    for writer in writers:
        assert writer.acknowledged.items() <= found.items()
    assert found.items() <= {key: value for writer in writers for key, value in writer.sent.items()}.items()
    assert healthy(server.address)
    with Client(server.address) as client:
        assert len(client.recommend_batch(USERS, count=3)) == len(USERS)
    assert server.stop() == 0, "".join(server.messages)
    assert strays(data) == strange_files(data) == socket_folders(data) == []
