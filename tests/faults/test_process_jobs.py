"""Jobs beside a server: on a full disk, several at once, and killed while they take the changes of a server."""

import random
import shutil
import subprocess

import pytest

from heliotrope import Client, Event, Item
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server import backup, build_command, verify
from heliotrope_server.backup_store import BackupStore
from tests.end_to_end.running_server import running_server
from tests.faults.killed_job import killed_at
from tests.faults.process_world import ITEMS, LONG, item_ids, tiny_world
from tests.faults.stray_files import strays, unnamed_pieces

FULL_DISKS = 60 if LONG else 3
BUILDERS = 6 if LONG else 2
INCREMENTAL_KILLS = 200 if LONG else 4
INCREMENTAL_STEPS = 400
"""About how many steps on the disk such a build takes."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory)


@pytest.fixture
def run(capsys):
    """Runs a job as the command line does; returns the exit code and the last line of standard error."""

    def running(main, *arguments):
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr().err.strip().splitlines()
        return code, said[-1] if said else ""

    return running


def options(world, store, *more):
    return ["--model", world.model, "--catalogue", world.catalogue, "--out", store, "--quiet", *more]


def assert_no_room(code, said):
    assert code == 1
    assert said.startswith("heliotrope")
    assert "No space left on device" in said or "is the disk full?" in said


def test_a_build_that_finds_the_disk_full_says_so_and_leaves_what_was_current(world, small_disk, run):
    rng = random.Random(13)
    store = small_disk.folder / "store"
    assert run(build_command.main, *options(world, store)) == (0, "")
    current = SnapshotStore(store).current()
    failed = 0
    for number in range(FULL_DISKS):
        small_disk.fill(spare=rng.choice([0, rng.randrange(200_000)]))
        code, said = run(build_command.main, *options(world, store, "--seed", number + 1))
        if code:
            assert_no_room(code, said)
            assert SnapshotStore(store).current() == current
            failed += 1
        current = SnapshotStore(store).current()
        SnapshotStore(store).open()
        small_disk.free()
    assert failed
    assert run(build_command.main, *options(world, store, "--seed", 1000)) == (0, "")
    for version in SnapshotStore(store).versions():
        SnapshotStore(store).open(version)
    assert strays(store) == []


def test_new_texts_that_find_no_room_are_embedded_by_the_next_build(world, small_disk, tmp_path, run):
    store = small_disk.folder / "store"
    assert run(build_command.main, *options(world, store)) == (0, "")
    more = tmp_path / "more.csv"
    rows = "".join(f"n{number},another title {number * 31},told again {number}\n" for number in range(400))
    more.write_text(world.catalogue.read_text(encoding="utf-8") + rows, encoding="utf-8")
    arguments = options(world, store, "--catalogue", more)
    small_disk.fill(spare=8_192)
    code, said = run(build_command.main, *arguments)
    assert code == 1 and f"the embedding cache {store / 'embeddings'} cannot be written" in said
    small_disk.free()
    assert run(build_command.main, *arguments) == (0, "")
    assert SnapshotStore(store).open().manifest.n_items == ITEMS + 400


def test_a_backup_that_finds_the_disk_full_says_so_and_leaves_the_older_ones(world, small_disk, tmp_path, run):
    rng = random.Random(14)
    data, backups = tmp_path / "data", small_disk.folder / "backups"
    arguments = ["--data", data, "--backups", backups]
    store = BackupStore(str(backups))
    with running_server(world.store, data) as server, Client(server.address) as client:

        def record(number):
            client.record_events([Event(f"u{n}", rng.choice(item_ids()), event_id=f"{number}-{n}") for n in range(500)])

        record(-1)
        assert run(backup.main, *arguments) == (0, "")
        for number in range(FULL_DISKS):
            record(number)
            before = store.backup_ids()
            small_disk.fill(spare=rng.choice([0, rng.randrange(20_000)]))
            assert_no_room(*run(backup.main, *arguments))
            assert store.backup_ids() == before
            small_disk.free()
        assert run(backup.main, *arguments, "--keep", 1) == (0, "")
        assert run(verify.main, "--backups", backups) == (0, "")
        assert strays(backups) == unnamed_pieces(store) == []


def test_of_builds_at_once_those_that_are_too_many_are_refused(world, tmp_path):
    store = tmp_path / "store"
    builds = [
        subprocess.Popen(world.build_command(store, "--seed", str(seed), "--quiet"), stderr=subprocess.PIPE, text=True)
        for seed in range(BUILDERS)
    ]
    said = [build.communicate(timeout=300)[1] for build in builds]
    codes = [build.returncode for build in builds]
    assert set(codes) <= {0, 1} and 0 in codes, said
    for code, message in zip(codes, said, strict=True):
        assert code == 0 or "another build is running" in message, message
    versions = SnapshotStore(store).versions()
    assert len(versions) == codes.count(0)
    for version in versions:
        SnapshotStore(store).open(version)
    assert strays(store) == []


def test_a_build_that_is_killed_while_it_takes_the_changes_of_a_server_loses_none(world, tmp_path, run):
    rng = random.Random(15)
    store, data = shutil.copytree(world.store, tmp_path / "store"), tmp_path / "data"
    build = ["--model", str(world.model), "--out", str(store), "--incremental", "--data", str(data), "--quiet"]
    serving = running_server(store, data, "--model", str(world.model), "--shards", "2")
    with serving as server, Client(server.address, timeout_s=60.0) as client:

        def change(number):
            comets = [Item(item_id=f"new {number}.{n}", title=f"comet {number} {n * 7919}") for n in range(3)]
            client.upsert_items([*comets, Item(item_id=f"i{number % ITEMS}", title=f"another title {number}")])
            client.delete_items([f"new {number}.0"])

        def served():
            return {item.item_id: item.title for item in client.list_items()}

        killed = 0
        for number in range(INCREMENTAL_KILLS):
            change(number)
            expected = served()
            assert f"new {number}.0" not in expected and expected[f"new {number}.1"] == f"comet {number} 7919"
            killed += killed_at(rng.randrange(INCREMENTAL_STEPS), build_command.main, build)
            client.activate_snapshot()  # whichever is current
            assert served() == expected
        assert killed
        assert run(build_command.main, *build) == (0, "")
        client.activate_snapshot()
        assert served() == expected
        assert {shard.delta_item_count for shard in client.serving_status().shards} == {0}
        assert client.search_items("comet 0 7919", count=1)[0].item.item_id == "new 0.1"
    assert strays(store) == []
