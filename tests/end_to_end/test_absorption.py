"""A running server's catalogue changes become part of the next snapshot, and what comes after stays in its delta."""

import subprocess
import sys

import pytest

from heliotrope import Client, Item
from heliotrope.errors import NotFoundError
from heliotrope_indexer.snapshot import SnapshotStore
from tests.end_to_end.running_server import running_server


def heliotrope(*arguments: object) -> str:
    command = [sys.executable, "-m", "heliotrope", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def titles(client: Client) -> dict[str, str]:
    return {item.item_id: item.title for item in client.list_items(page_size=100)}


def deltas(client: Client) -> set[int]:
    return {shard.delta_item_count for shard in client.serving_status().shards}


def test_an_incremental_build_absorbs_the_delta_of_a_running_server(tmp_path, model_folder):
    store, data = tmp_path / "store", tmp_path / "data"
    rows = [f"film-{number},A film about subject number {number}" for number in range(30)]
    (tmp_path / "films.csv").write_text("\n".join(["id,title", *rows]) + "\n")
    build = ["build", "--model", model_folder, "--out", store, "--dimension", 16, "--quiet"]
    heliotrope(*build, "--catalogue", tmp_path / "films.csv")
    first = SnapshotStore(store).current()
    options = ["--model", str(model_folder), "--shards", "2"]
    with running_server(store, data, *options) as server, Client(server.address) as client:
        client.upsert_items([Item(item_id=f"new-{number}", title=f"Comets, part {number}") for number in range(3)])
        client.upsert_items([Item(item_id="film-1", title="A film with another name", provider="a shop")])
        client.delete_items(["film-2", "new-2"])
        said = heliotrope(*build, "--incremental", "--data", data)
        assert "LSN 6" in said
        second = SnapshotStore(store).current()
        assert second in said and second != first
        # The build is over and not yet served.
        client.upsert_items([Item(item_id="late", title="Meteors")])
        client.delete_items(["new-1"])
        before = titles(client)
        assert deltas(client) == {5}
        client.activate_snapshot()
        assert {shard.snapshot_version for shard in client.serving_status().shards} == {second}
        assert deltas(client) == {1}
        assert titles(client) == before
        assert client.get_item("film-1").item.provider == "a shop"
        for gone in ("film-2", "new-1", "new-2"):
            with pytest.raises(NotFoundError):
                client.get_item(gone)
    with running_server(store, data, *options) as server, Client(server.address) as client:
        assert deltas(client) == {1}
        assert titles(client) == before
        heliotrope("snapshots", "rollback", "--snapshots", store, "--server", server.address)
        assert {shard.snapshot_version for shard in client.serving_status().shards} == {first}
        assert titles(client) == before
        client.activate_snapshot(second)
        # Nothing is lost by absorbing the rest, and then there is nothing to do.
        heliotrope(*build, "--incremental", "--data", data)
        client.activate_snapshot()
        assert deltas(client) == {0}
        assert titles(client) == before
    assert "nothing changed" in heliotrope(*build, "--incremental", "--data", data)
