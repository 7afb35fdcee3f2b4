"""Backups of a running server, under load: the commands as a user would call them."""

import subprocess
import sys
import threading

import pytest

from heliotrope import Client, Event
from heliotrope.errors import VersionNotAvailableError
from tests.end_to_end.running_server import RunningServer, running_server
from tests.server import worlds

USERS = [f"user-{number}" for number in range(20)]


class Writer(threading.Thread):
    """Records events without pause, and keeps what was acknowledged, in order."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.acknowledged = []
        self.stopping = threading.Event()
        self._address = address

    def run(self):
        number = 0
        with Client(self._address) as client:
            while not self.stopping.is_set():
                user = USERS[number % len(USERS)]
                event = Event(user, f"i{number % 200}", event_id=f"e{number}")
                token = client.record_events([event]).version_token(user)
                self.acknowledged.append((user, event.event_id, token))
                number += 1

    def wait_for(self, count):
        while len(self.acknowledged) < count:
            assert self.is_alive()
            self.join(0.01)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "heliotrope", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def events_of(address):
    with Client(address) as client:
        return {event.event_id for user in USERS for event in list(client.export_profile(user))[1:]}


def test_a_backup_of_a_busy_server_holds_every_event_that_was_acknowledged_before_it(tmp_path):
    worlds.publish(tmp_path / "store")
    options = ["--shards", "2", "--checkpoint-interval-s", "0.1", "--ring-size", "100000"]
    server = RunningServer(tmp_path / "store", tmp_path / "data", *options, "--impression-log-share", "1")
    writer = Writer(server.address)
    writer.start()
    before = {}
    for _ in range(3):
        writer.wait_for(len(writer.acknowledged) + 150)
        acknowledged = list(writer.acknowledged)
        said = run("backup", "--data", tmp_path / "data", "--backups", tmp_path / "backups", "--keep", "2")
        before[said.split()[1].rstrip(":")] = acknowledged
        run("verify", "--data", tmp_path / "data")
    writer.wait_for(len(writer.acknowledged) + 150)
    writer.stopping.set()
    writer.join()
    server.kill_everything()
    assert "2 backups" in run("verify", "--backups", tmp_path / "backups")
    for shards, (backup_id, acknowledged) in zip(("2", "3"), list(before.items())[-2:], strict=True):
        new = tmp_path / f"new-{shards}"
        run("restore", "--backups", tmp_path / "backups", "--backup", backup_id, "--data", new)
        again = running_server(tmp_path / "store", new, "--shards", shards, "--ring-size", "100000")
        with again as server, Client(server.address) as client:
            found = events_of(server.address)
            assert {event_id for _, event_id, _ in acknowledged} <= found
            assert found <= {event_id for _, event_id, _ in writer.acknowledged}
            user, _, token = acknowledged[-1]
            assert client.recommend(user, version_token=token).recommendations
            # The numbers of the records that were lost are given to others, and their tokens stay errors.
            for part in range(len(writer.acknowledged) // 1000 + 1):
                client.record_events([Event(USERS[n % 20], f"i{n % 200}", event_id=f"{part}.{n}") for n in range(1000)])
            for user, _, lost in writer.acknowledged[-len(USERS) :]:
                with pytest.raises(VersionNotAvailableError, match="ended at"):
                    client.recommend(user, version_token=lost)


def test_a_backup_beside_a_server_that_cuts_its_shards_anew_is_the_old_or_the_new_state(tmp_path):
    worlds.publish(tmp_path / "store")
    with running_server(tmp_path / "store", tmp_path / "data") as server, Client(server.address) as client:
        client.record_events([Event(user, "i1", event_id=user) for user in USERS])
    run("backup", "--data", tmp_path / "data", "--backups", tmp_path / "backups")
    with running_server(tmp_path / "store", tmp_path / "data", "--shards", "2"):
        run("backup", "--data", tmp_path / "data", "--backups", tmp_path / "backups")
    run("restore", "--backups", tmp_path / "backups", "--data", tmp_path / "new")
    with running_server(tmp_path / "store", tmp_path / "new", "--shards", "2") as server:
        assert events_of(server.address) == set(USERS)
