"""Operators through `heliotrope snapshots` and a real server."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from heliotrope import Client
from heliotrope.errors import FailedPreconditionError
from heliotrope_indexer.snapshot import SnapshotStore
from tests.end_to_end.running_server import running_server
from tests.server import worlds


def snapshots(*arguments: object) -> str:
    command = [sys.executable, "-m", "heliotrope", "snapshots", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(client: Client) -> set[str]:
    return {shard.snapshot_version for shard in client.serving_status().shards}


def test_a_rollback_after_a_restart(tmp_path):
    store, data = tmp_path / "store", tmp_path / "data"
    first, second = (worlds.publish(store, seed=seed) for seed in range(2))
    SnapshotStore(store).activate(first)
    with running_server(store, data, "--shards", "2") as server, Client(server.address) as client:
        said = snapshots("activate", "--snapshots", store, "--server", server.address, second)
        assert second in said and first in said
        assert served(client) == {second}
    with running_server(store, data, "--shards", "2") as server, Client(server.address) as client:
        assert served(client) == {second}
        assert first in snapshots("rollback", "--snapshots", store, "--server", server.address)
        assert served(client) == {first}
        assert SnapshotStore(store).current() == first
        # Further back: what was current before that.
        assert client.roll_back_snapshot() == second
        assert client.roll_back_snapshot() == first
        with pytest.raises(FailedPreconditionError, match="knows of no version that was current before") as caught:
            client.roll_back_snapshot()
        assert caught.value.reason == "NO_PREVIOUS_SNAPSHOT"


def test_switches_asked_of_several_shards_at_once_leave_all_with_one_snapshot(tmp_path):
    store = tmp_path / "store"
    versions = [worlds.publish(store, seed=seed) for seed in range(3)]
    with running_server(store, tmp_path / "data", "--shards", "3") as server, Client(server.address) as client:
        addresses = [shard.address for shard in client.serving_status().shards]

        def switch(turn: int) -> str:
            with Client(addresses[turn % 3], direct=False) as one:
                return one.activate_snapshot(versions[turn * 7 % 3]).snapshot_version

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(switch, range(24))) == [versions[turn * 7 % 3] for turn in range(24)]
        assert served(client) == {SnapshotStore(store).current()}


def test_prune_spares_what_a_server_serves(tmp_path):
    store = tmp_path / "store"
    first = worlds.publish(store, seed=0)
    with running_server(store, tmp_path / "data") as server, Client(server.address) as client:
        later = [worlds.publish(store, seed=seed) for seed in (1, 2, 3, 4)]
        listed = snapshots("list", "--snapshots", store, "--server", server.address)
        assert [line for line in listed.splitlines() if first in line and "served" in line]
        snapshots("prune", "--snapshots", store, "--server", server.address, "--keep", 1)
        assert {first, later[2], later[3]} <= set(SnapshotStore(store).versions())
        assert not {later[0], later[1]} <= set(SnapshotStore(store).versions())
        assert served(client) == {first}
        assert client.recommend("anybody").recommendations
