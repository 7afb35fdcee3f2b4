"""Jobs that are killed at every step they take on a disk: publish, activate, remove, back up, restore, cut shards anew.

Before each step the job dies as by `kill -9`. What was there before is whole, and the job can be run again.
"""

import asyncio
import json
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.access.audit_log import audit_key
from heliotrope_server.activation import learn_old_maps
from heliotrope_server.backup import take_backup
from heliotrope_server.backup_store import BackupStore
from heliotrope_server.errors import BackupError, DataFolderError
from heliotrope_server.layout import open_layout, read_layout
from heliotrope_server.restore import restore
from heliotrope_server.settings import EngineSettings
from heliotrope_server.verify import verify_backups, verify_data
from heliotrope_server.verify_content import Report
from tests.faults.killed_job import killed_at
from tests.faults.process_world import LONG
from tests.faults.stray_files import strange_files, strays, unnamed_pieces
from tests.fixtures.make_data_folder import seen
from tests.server import worlds

FIXTURE = Path(__file__).parents[1] / "fixtures" / "data-folder-v1"


def steps(few):
    """Every step in a long run; else the first ones, and then ever fewer, for about `few` of them."""
    rng = random.Random(9)
    step = 0
    while True:
        yield step
        step += 1 if LONG else rng.randrange(1, 3 + 2 * step // few)


@pytest.fixture
def snapshots(tmp_path):
    """A store with two snapshots, the older one current, and a draft of a third beside it."""
    store = SnapshotStore(tmp_path / "store")
    first = worlds.publish(tmp_path / "store", seed=0, items=20)
    worlds.publish(tmp_path / "store", seed=1, items=20)
    store.activate(first)
    third = worlds.publish(tmp_path / "elsewhere", seed=2, items=20)
    (tmp_path / "elsewhere" / third).rename(tmp_path / "draft")
    return store


def publish(store, draft, scratch):
    shutil.rmtree(scratch, ignore_errors=True)
    SnapshotStore(store).publish(Path(shutil.copytree(draft, scratch)))


def activate(store, version):
    SnapshotStore(store).activate(version)


def remove(store, version):
    SnapshotStore(store).remove(version)


def back_up(data, backups):
    store = BackupStore(str(backups))
    with store.locked():
        take_backup(data, store)
        store.prune(1)


def restore_newest(backups, data):
    restore(BackupStore(str(backups)), None, data)


def cut(data, shards):
    store = SnapshotStore(FIXTURE / "snapshots")
    open_layout(data, shards, store.open(), EngineSettings(), partial(learn_old_maps, store))


def assert_whole(store, possible):
    """CURRENT is one of these, and every version that can be seen can be served."""
    assert store.current() in possible
    for version in store.versions():
        store.open(version)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same disk", "another disk"])
def test_a_publication_that_is_killed_is_there_or_not(tmp_path, snapshots, small_disk, elsewhere):
    scratch = (small_disk.folder if elsewhere else tmp_path) / "scratch"
    third = json.loads((tmp_path / "draft" / "manifest.json").read_text())["version"]
    before = snapshots.current()
    for step in steps(5):
        killed = killed_at(step, publish, snapshots.path, tmp_path / "draft", scratch)
        assert_whole(snapshots, {before, third} if killed else {third})
        assert killed or strays(snapshots.path) == []
        if not killed:
            break
        publish(snapshots.path, tmp_path / "draft", scratch)
        assert_whole(snapshots, {third})
        assert strays(snapshots.path) == []
        snapshots.activate(before)
        snapshots.remove(third)
    assert step > 5


def test_a_switch_of_the_pointer_that_is_killed_leaves_the_old_or_the_new_one(tmp_path, snapshots):
    first, second = snapshots.current(), snapshots.versions()[0]
    for step in steps(5):
        killed = killed_at(step, activate, snapshots.path, second)
        assert_whole(snapshots, {first, second} if killed else {second})
        assert snapshots.standing()[-1] == snapshots.current()
        if not killed:
            break
        snapshots.activate(first)
        assert strays(snapshots.path) == []
        assert snapshots.standing()[-1] == first
    assert step > 3
    assert strays(snapshots.path) == []


def test_a_removal_that_is_killed_is_finished_by_the_next(tmp_path, snapshots):
    first, second = snapshots.current(), snapshots.versions()[0]
    (tmp_path / "rejected").write_text("{}\n")
    for step in steps(5):
        snapshots.keep_rejects(second, tmp_path / "rejected")
        shutil.copytree(tmp_path / "store" / second, tmp_path / "kept", dirs_exist_ok=True)
        killed = killed_at(step, remove, snapshots.path, second)
        assert_whole(snapshots, {first})
        if not killed:
            break
        if second in snapshots.versions():
            snapshots.remove(second)
        else:
            publish(snapshots.path, tmp_path / "draft", tmp_path / "scratch")
            third = snapshots.current()
            snapshots.activate(first)
            snapshots.remove(third)
        assert strays(snapshots.path) == []
        assert list((tmp_path / "store" / "rejects").iterdir()) == []
        shutil.move(tmp_path / "kept", tmp_path / "store" / second)
    assert step > 3


def test_a_key_that_is_made_by_many_at_once_or_killed_is_one_key(tmp_path):
    for step in steps(5):
        data = tmp_path / f"data-{step}"
        data.mkdir()
        killed = killed_at(step, audit_key, data)
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(audit_key, [data] * 8))
        assert len(keys) == 1 and len(keys.pop()) == 32
        assert strays(data) == strange_files(data) == []
        if not killed:
            break
    assert step > 3


def problems(check, *arguments):
    report = Report()
    check(*arguments, report)
    return report.problems


def test_a_backup_that_is_killed_leaves_the_older_ones_whole_and_the_next_one_ends(tmp_path):
    data, backups = shutil.copytree(FIXTURE / "data", tmp_path / "data"), tmp_path / "backups"
    store = BackupStore(str(backups))
    for step in steps(5):
        before = set(store.backup_ids())
        killed = killed_at(step, back_up, data, backups)
        assert store.backup_ids() or not before
        for backup_id in store.backup_ids():
            assert problems(verify_backups, store, backup_id) == []
        if killed:
            back_up(data, backups)
            assert problems(verify_backups, store, None) == []
        assert strays(backups) == [] and unnamed_pieces(store) == []
        if not killed:
            break
        # Something that the next one must write.
        aside = next((data / read_layout(data).generation).rglob("log")) / f"{step:020d}.log.damaged"
        aside.write_bytes(random.Random(step).randbytes(1000))
    assert step > 20


async def test_a_restore_that_is_killed_is_no_data_folder_and_can_be_repeated(tmp_path):
    back_up(shutil.copytree(FIXTURE / "data", tmp_path / "data"), tmp_path / "backups")
    snapshot = SnapshotStore(FIXTURE / "snapshots").open()
    for step in steps(5):
        new = tmp_path / "new"
        killed = killed_at(step, restore_newest, tmp_path / "backups", new)
        if not killed or (new / "layout.json").exists():
            assert problems(verify_data, new) == []
            found = await seen(new, read_layout(new), snapshot)
        elif any(new.glob("g-*")):
            with pytest.raises(DataFolderError, match="restore was not finished"):
                cut(new, 1)
            with pytest.raises(BackupError, match="is not empty"):
                restore_newest(tmp_path / "backups", new)
        else:
            # Nothing but empty folders: it may be taken for a new one.
            assert not [path for path in new.rglob("*") if path.is_file() and path.name != "LOCK"]
        if not killed:
            break
        shutil.rmtree(new, ignore_errors=True)
    assert step > 20
    copy = shutil.copytree(FIXTURE / "data", tmp_path / "copy")
    assert found == await seen(copy, read_layout(copy), snapshot)


def test_shards_that_are_cut_anew_lose_nobody_wherever_that_is_killed(tmp_path):
    copy = shutil.copytree(FIXTURE / "data", tmp_path / "copy")
    expected = events_of(copy)
    assert sum(expected.values()) > 50
    for step in steps(2):
        data = shutil.copytree(FIXTURE / "data", tmp_path / f"data-{step}")
        killed = killed_at(step, cut, data, 2)
        cut(data, 2)
        assert problems(verify_data, data) == []
        layout = read_layout(data)
        assert layout.shards == 2
        assert {path.name for path in data.glob("g-*")} == {layout.generation, *layout.ancestors}
        assert strays(data) == [] and strange_files(data) == []
        cut(data, 1)
        assert events_of(data) == expected
        if not killed:
            break
        shutil.rmtree(data)
    assert step > 10


def events_of(data):
    """How often each event of each user is in a folder of one shard."""
    users = asyncio.run(seen(data, read_layout(data), SnapshotStore(FIXTURE / "snapshots").open()))["users"]
    return Counter((user, *event) for user, shown in users.items() for event in shown["events"])
