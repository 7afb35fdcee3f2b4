"""Backup, restore and verify on the committed data folder; with a running server: tests/end_to_end/test_backup.py."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import fsspec
import lmdb
import pytest

from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server import backup, restore, store_dump, verify
from heliotrope_server.backup import take_backup
from heliotrope_server.backup_store import BackupStore
from heliotrope_server.data_source import DataSource, StoreEntry
from heliotrope_server.errors import BackupError, DataFolderError, VersionNotAvailableError
from heliotrope_server.layout import lock_data, open_layout, read_layout
from heliotrope_server.record_log import RecordLog, segments
from heliotrope_server.repair import repair
from heliotrope_server.restore import restore as restore_backup
from heliotrope_server.settings import EngineSettings
from heliotrope_server.verify import verify_backups, verify_data
from heliotrope_server.verify_content import Report
from tests.fixtures.make_data_folder import seen

FIXTURE = Path(__file__).parents[1] / "fixtures" / "data-folder-v1"


@pytest.fixture
def data(tmp_path):
    return Path(shutil.copytree(FIXTURE / "data", tmp_path / "data"))


@pytest.fixture
def store(tmp_path):
    return BackupStore(str(tmp_path / "backups"))


def shard_log(data):
    return read_layout(data).shard_folder(data, 0) / "log"


async def append(folder, *batches, **settings):
    log = RecordLog(folder, **settings)
    for batch in batches:
        await log.append(batch, lambda lsn: lsn)
    log.close()


def click(number):
    return [1, 0, "u0", f"more-{number}", 2, "i1", 1.0, 1_700_000_000_000_000, ""]


def problems_of(data):
    report = Report()
    verify_data(data, report)
    return report.problems


def backup_problems(store, backup_id=None):
    report = Report()
    verify_backups(store, backup_id, report)
    return report.problems


async def test_what_is_restored_shows_what_was_backed_up(data, store, tmp_path):
    expected = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))
    taken = take_backup(data, store)
    assert [(shard.checkpoint_lsn, shard.last_lsn) for shard in taken.manifest.shards] == [(213, 221)]
    restore_backup(store, None, tmp_path / "new")
    assert problems_of(tmp_path / "new") == []
    snapshot = SnapshotStore(FIXTURE / "snapshots").open()
    assert taken.manifest.snapshot_versions == (snapshot.version,)
    found = await seen(tmp_path / "new", read_layout(tmp_path / "new"), snapshot)
    assert found == await seen(data, read_layout(data), snapshot)
    assert found["users"].keys() == expected["users"].keys()
    for path in data.rglob("*"):
        if path.suffix in (".log", ".weights"):
            name = path.relative_to(data).as_posix().replace(read_layout(data).generation, "NEW")
            copy = tmp_path / "new" / name.replace("NEW", read_layout(tmp_path / "new").generation)
            assert copy.read_bytes() == path.read_bytes()


def test_tokens_of_what_was_lost_stay_errors_when_their_numbers_come_round_again(data, store, tmp_path):
    clock, generation = read_layout(data).clock(0), read_layout(data).generation
    take_backup(data, store)
    for _ in range(2):  # a restore of a restore knows both
        restore_backup(store, None, tmp_path / "new")
        restored = read_layout(tmp_path / "new").clock(0)
        restored.require(clock.token(221), applied_lsn=221)
        with pytest.raises(VersionNotAvailableError, match="ended at 221"):
            restored.require(clock.token(222), applied_lsn=500)
        with pytest.raises(VersionNotAvailableError, match=generation):
            clock.require(restored.token(221), applied_lsn=500)
        restored.require(restored.token(500), applied_lsn=500)
        shutil.rmtree(data)
        (tmp_path / "new").rename(data)
        take_backup(data, store)


async def test_a_second_backup_adds_only_what_is_new(data, store):
    first = take_backup(data, store)
    assert first.new_pieces == len(store.pieces())
    again = take_backup(data, store)
    assert (again.new_pieces, again.new_bytes) == (0, 0)
    await append(shard_log(data), [click(number) for number in range(3)])
    third = take_backup(data, store)
    assert third.new_pieces == 1
    assert third.manifest.shards[0].last_lsn == 224
    assert store.backup_ids() == [third.backup_id, again.backup_id, first.backup_id]
    assert backup_problems(store) == []


async def test_sealed_segments_are_not_read_again(data, store):
    folder = shard_log(data)
    await append(folder, *([click(number)] for number in range(10)), segment_bytes=100)
    take_backup(data, store)
    sealed = segments(folder)[1]
    content = sealed.read_bytes()
    sealed.write_bytes(bytes(len(content)))  # would be refused, if it were read
    taken = take_backup(data, store)
    assert taken.new_pieces == 0
    assert backup_problems(store) == []


def test_an_unfinished_write_at_the_end_of_the_log_is_left_out(data, store):
    path = segments(shard_log(data))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + b"HLFR" + bytes(20))
    taken = take_backup(data, store)
    assert {file.name: file.size for file in taken.manifest.files}[path.relative_to(data).as_posix()] == len(whole)


def test_damage_in_the_log_is_named_and_not_backed_up(data, store, capsys):
    path = segments(shard_log(data))[-1]
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert backup.main(["--data", str(data), "--backups", store.path]) == 1
    assert f"{path} is damaged at byte 12" in capsys.readouterr().err
    assert store.backup_ids() == []
    assert verify.main(["--data", str(data)]) == 1
    assert f"damaged: {path.relative_to(data)} is damaged at byte 12" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_any_flipped_bit_of_a_backup_is_found_with_its_file(data, store, tmp_path, seed):
    rng = random.Random(seed)
    taken = take_backup(data, store)
    for path in sorted(Path(store.path).rglob("*")):
        if not path.is_file() or path.name == "LOCK":
            continue
        content = bytearray(path.read_bytes())
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        (problem,) = backup_problems(store)
        assert path.stem in problem
        with pytest.raises(BackupError):
            restore_backup(store, taken.backup_id, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        path.write_bytes(content)
    assert backup_problems(store) == []


def test_a_missing_piece_is_found_and_the_next_backup_brings_it_back(data, store):
    take_backup(data, store)
    name = next(iter(store.pieces()))
    (path,) = Path(store.path).rglob(name)
    path.unlink()
    (problem,) = backup_problems(store)
    assert f"piece {name} is missing" in problem
    assert take_backup(data, store).new_pieces == 1
    assert backup_problems(store) == []


async def test_keeping_some_removes_the_others_and_what_only_they_need(data, store):
    for number in range(4):
        await append(shard_log(data), [click(number)])
        assert backup.main(["--data", str(data), "--backups", store.path, "--keep", "2"]) == 0
    ids = store.backup_ids()
    assert len(ids) == 2
    assert store.pieces().keys() == store.manifest(ids[0]).piece_names | store.manifest(ids[1]).piece_names
    for backup_id in ids:
        assert backup_problems(store, backup_id) == []


def test_nothing_is_removed_while_a_manifest_that_stays_cannot_be_read(data, store):
    for _ in range(3):
        take_backup(data, store)
    newest = Path(store.path) / "backups" / f"{store.backup_ids()[0]}.json"
    newest.write_bytes(newest.read_bytes()[:-1])
    before = store.pieces(), store.backup_ids()
    with pytest.raises(BackupError, match="damaged"):
        store.prune(1)
    assert (store.pieces(), store.backup_ids()) == before


def test_backups_keep_their_order_when_the_clock_jumps_back(data, store, monkeypatch):
    first = take_backup(data, store)
    later = first.manifest.model_copy(update={"time": first.manifest.time.replace(year=2999)})
    newest = store.publish(later)
    assert take_backup(data, store).backup_id > newest


def test_a_store_behind_a_url_holds_the_same(data, tmp_path):
    """The two commands in one process, since this file system lives in memory."""
    url = f"memory://{tmp_path.name}"
    assert backup.main(["--data", str(data), "--backups", url]) == 0
    assert backup.main(["--data", str(data), "--backups", url, "--keep", "1"]) == 0
    assert verify.main(["--backups", url]) == 0
    assert restore.main(["--backups", url, "--data", str(tmp_path / "new")]) == 0
    assert problems_of(tmp_path / "new") == []
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_restore_wants_an_empty_folder(data, store):
    take_backup(data, store)
    with pytest.raises(BackupError, match=r"is not empty: it holds catalogue, g-"):
        restore_backup(store, None, data)


def test_a_restore_that_was_broken_off_is_not_taken_for_a_new_folder(data, store, tmp_path, monkeypatch):
    take_backup(data, store)
    with monkeypatch.context() as patch:
        patch.setattr(restore, "write_layout", lambda data, layout: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            restore_backup(store, None, tmp_path / "new")
    snapshot = SnapshotStore(FIXTURE / "snapshots").open()
    with pytest.raises(DataFolderError, match="a restore was not finished"):
        open_layout(tmp_path / "new", 1, snapshot, EngineSettings(), lambda _catalogue, _versions: None)


def test_two_jobs_do_not_write_to_one_store(data, store, capsys):
    with store.locked():
        assert backup.main(["--data", str(data), "--backups", store.path]) == 1
    assert "another job is writing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        (verify, ["--data", "{}/nothing"], "no data folder"),
        (verify, ["--backups", "{}/nothing"], "holds no backup"),
        (verify, [], "name either --data or --backups"),
        (backup, ["--data", "{}/nothing", "--backups", "{}/b"], "no data folder"),
        (backup, ["--data", "{}/nothing", "--backups", "{}/b", "--keep", "0"], "greater than or equal to 1"),
        (restore, ["--backups", "{}/b", "--data", "{}/d", "--backup", "../x"], "'../x' is not a backup"),
        (restore, ["--backups", "nowhere://b", "--data", "{}/d"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, capsys, command, arguments, named):
    assert command.main([each.format(tmp_path) for each in arguments]) in (1, 2)
    message = capsys.readouterr().err
    assert named in message
    assert "Traceback" not in message


def test_a_profile_that_grew_changes_its_own_piece_and_no_other():
    rng = random.Random(0)
    entries = [StoreEntry("profiles", b"user-%06d" % number, rng.randbytes(200)) for number in range(20_000)]
    pieces = list(store_dump.dump_pieces(entries))
    assert [entry for piece in pieces for entry in store_dump.piece_entries(piece)] == entries
    assert len(entries) / 2 < len(pieces) * store_dump.ENTRIES < len(entries) * 2
    changed = [*entries[:9000], entries[9000]._replace(value=b"grown" * 1000), *entries[9001:]]
    changed.insert(4000, StoreEntry("profiles", b"user-003999-new", b"new"))
    known = {hashlib.sha256(piece).digest() for piece in pieces}
    fresh = [piece for piece in store_dump.dump_pieces(changed) if hashlib.sha256(piece).digest() not in known]
    assert len(fresh) == 2


def test_a_store_that_contradicts_itself_is_found(data):
    """LMDB has no checksums, but its keys are in order, and each is found where its order says."""
    folder = read_layout(data).shard_folder(data, 0) / "profiles"
    with lmdb.open(str(folder), max_dbs=8, map_size=1 << 24) as environment:
        database = environment.open_db(b"profiles")
        with environment.begin(write=True) as transaction:
            for number in range(300):
                transaction.put(b"filler-%05d" % number, b"x" * 500, db=database)
    pristine = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(pristine.replace(b"filler-00150", b"filler-99999"))
    with pytest.raises(DataFolderError, match="out of its place"):
        list(DataSource(data).store_entries(folder.relative_to(data).as_posix()))


def test_a_profile_that_cannot_be_decoded_is_named(data):
    folder = read_layout(data).shard_folder(data, 0) / "profiles"
    with lmdb.open(str(folder), max_dbs=8, map_size=1 << 24) as environment:
        database = environment.open_db(b"profiles")
        with environment.begin(write=True) as transaction:
            transaction.put(b"u3", transaction.get(b"u3", db=database)[:-1], db=database)
    (problem,) = problems_of(data)
    assert "profiles b'u3': " in problem


def test_records_that_are_missing_are_named(data):
    path = segments(shard_log(data))[-1]
    path.rename(path.with_name(f"{5:020d}.log"))
    shutil.copy(path.with_name(f"{5:020d}.log"), path)
    assert any("the frame begins at LSN 1; 222 was expected" in problem for problem in problems_of(data))
    path.unlink()
    path.with_name(f"{5:020d}.log").unlink()
    assert any("ends at LSN 0, before the checkpoint at 213" in problem for problem in problems_of(data))


async def test_a_damaged_profile_store_is_replaced_and_the_log_brings_it_up_to_date(data, store):
    snapshot, layout = SnapshotStore(FIXTURE / "snapshots").open(), read_layout(data)
    take_backup(data, store)
    await append(shard_log(data), [click(number) for number in range(3)])
    wanted = await seen(data, layout, snapshot)
    profiles = layout.shard_folder(data, 0) / "profiles"
    assert repair(data, store, None) == []
    content = bytearray((profiles / "data.mdb").read_bytes())
    content[8192:] = bytes(len(content) - 8192)
    (profiles / "data.mdb").write_bytes(content)
    assert problems_of(data) != []
    assert repair(data, store, None) == [profiles]
    assert problems_of(data) == []
    found = await seen(data, layout, snapshot)
    assert wanted["applied_lsn"] == found["applied_lsn"] == 224
    assert found == wanted
    assert profiles.with_name("profiles.damaged").exists()


def test_profiles_of_another_generation_do_not_go_with_these_logs(data, store, tmp_path):
    take_backup(data, store)
    restore_backup(store, None, tmp_path / "new")
    with pytest.raises(BackupError, match="its profiles do not go with these logs"):
        repair(tmp_path / "new", store, None)


def test_a_running_server_is_not_repaired(data, store):
    take_backup(data, store)
    with lock_data(data), pytest.raises(DataFolderError, match="in use"):
        repair(data, store, None)
