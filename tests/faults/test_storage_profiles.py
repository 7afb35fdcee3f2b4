"""One damaged value of a profile store: who is refused, who is served, and what a repair brings back."""

import asyncio
import random
import re
import shutil
from contextlib import closing

import lmdb
import numpy as np
import pytest

from heliotrope import Client, Event
from heliotrope.errors import ServerError
from heliotrope.v1 import event_pb2
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server import repair, verify
from heliotrope_server.answerer import Answer, Question
from heliotrope_server.backup import take_backup
from heliotrope_server.backup_store import BackupStore
from heliotrope_server.errors import BackupError, DataFolderError, ProfileDamagedError
from heliotrope_server.layout import Layout, open_layout, read_layout, write_layout
from heliotrope_server.profile_codec import encode_profile
from heliotrope_server.profile_rebuild import Folding
from heliotrope_server.record_log import read_log, segments
from heliotrope_server.settings import EngineSettings
from heliotrope_server.verify_content import Report
from tests.end_to_end.running_server import refused_start, running_server
from tests.server import worlds

NOW_S = 1.7e9
USERS = [f"u{number}" for number in range(6)]
SETTINGS = {"wall_clock": lambda: NOW_S, "ring_size": 16, "event_window_s": 3 * worlds.DAY_S}
FOLDING = Folding(16, NOW_S - 3 * worlds.DAY_S)


def damage(profiles, key=b"u1", database=b"profiles", seed=0):
    """Flips one bit of a value, as a decaying disk does; the tree that leads to it stays whole."""
    rng = random.Random(seed)
    with closing(lmdb.open(str(profiles), max_dbs=8, map_size=1 << 30)) as environment:
        values = environment.open_db(database)
        with environment.begin(write=True) as transaction:
            value = bytearray(transaction.get(key, db=values))
            value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
            transaction.put(key, bytes(value), db=values)


async def live(folder, served, count=300, **settings):
    """Some time of six users, all of it checkpointed; returns what their profiles are."""
    async with worlds.engine(folder, served, **SETTINGS, **settings) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(0), count, users=6, now_s=NOW_S))
        for user in USERS[:2]:
            await engine.set_segments(user, ["de"])
        await engine.checkpoint()
        return profiles_of(engine)


def profiles_of(engine, users=USERS):
    return {user: encode_profile(engine.profile(user)) for user in users}


async def answers(engine):
    asked = [Question(user, 5, time_s=NOW_S) for user in USERS]
    return dict(zip(USERS, await engine.recommend_many(asked), strict=True))


def listed(answer):
    return answer.item_ids, answer.scores


@pytest.mark.parametrize("seed", range(4))
async def test_a_damaged_profile_fails_its_own_user_and_nobody_else_of_the_batch(tmp_path, caplog, seed):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        wanted = await answers(engine)
    damage(tmp_path / "shard" / "profiles", seed=seed)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        for _ in range(3):
            found = await answers(engine)
            assert isinstance(found["u1"], ProfileDamagedError)
            assert (found["u1"].code, found["u1"].reason) == ("DATA_LOSS", "PROFILE_DAMAGED")
            assert found["u1"].metadata["user_id"] == "u1"
            for user in set(USERS) - {"u1"}:
                assert listed(found[user]) == listed(wanted[user])
        with pytest.raises(ProfileDamagedError):
            await engine.recommend(Question("u1", 5))
        assert (await engine.recommend(Question("u2", 5))).result.item_ids
        assert engine.healthy
    said = [record.message for record in caplog.records if "'u1'" in record.message]
    assert len(said) == 1
    assert "run `heliotrope repair`" in said[0]


async def test_events_of_a_damaged_user_are_refused_and_not_logged_and_the_others_are_recorded(tmp_path):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    damage(tmp_path / "shard" / "profiles")
    events = [one._replace(event_id=f"new-{one.event_id}") for one in fresh_events(40)]
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        before = engine.applied_lsn
        fates, lsn = await engine.record(events)
        for event, fate in zip(events, fates, strict=True):
            assert isinstance(fate.error, ProfileDamagedError) == (event.user_id == "u1")
        sound = [event.event_id for event in events if event.user_id != "u1"]
        assert lsn == engine.applied_lsn == before + len(sound) < before + len(events)
        for event in events:
            assert event.user_id == "u1" or event.event_id in engine.profile(event.user_id).events
        only = [event for event in events if event.user_id == "u1"]
        fates, last = await engine.record(only)
        assert {type(fate.error) for fate in fates} == {ProfileDamagedError}
        assert last == lsn
        with pytest.raises(ProfileDamagedError):
            await engine.set_segments("u1", ["fr"])
        assert engine.applied_lsn == lsn
        await engine.checkpoint()
    records = [record for frame in read_log(tmp_path / "shard" / "log", after_lsn=before) for record in frame.records]
    assert [record[3] for record in records] == sound


def fresh_events(count):
    return worlds.random_events(np.random.default_rng(7), count, users=6, now_s=NOW_S, days=1.0)


async def test_a_replay_passes_a_damaged_profile_by_and_a_repair_brings_its_events_back(tmp_path):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    data = as_data_folder(tmp_path)
    folder = data / "g-test"
    async with worlds.engine(folder, served, crash=True, **SETTINGS) as engine:
        await engine.record([one._replace(event_id=f"tail-{one.event_id}") for one in fresh_events(40)])
        wanted, last_lsn = profiles_of(engine), engine.applied_lsn
    damage(folder / "shard" / "profiles")
    async with worlds.engine(folder, served, **SETTINGS) as engine:
        assert engine.applied_lsn == last_lsn
        others = [user for user in USERS if user != "u1"]
        assert profiles_of(engine, others) == {user: wanted[user] for user in others}
        with pytest.raises(ProfileDamagedError):
            engine.profile("u1")
    # The last checkpoint is behind the events that could not be applied.
    (rebuilt,) = rebuild(data, tmp_path)
    async with worlds.engine(folder, served, **SETTINGS) as engine:
        assert profiles_of(engine) == wanted
        assert rebuilt == ("u1", engine.profile("u1").event_count)


def as_data_folder(folder, generation="g-test"):
    """Makes the folder of an engine the only shard of a data folder; engines go on in DATA/<generation>."""
    data = folder / "data"
    (data / generation).mkdir(parents=True)
    (folder / "shard").rename(data / generation / "shard-000")
    (data / generation / "shard").symlink_to("shard-000")
    write_layout(data, Layout(generation=generation, shards=1))
    return data


def rebuild(data, folder, folding=FOLDING):
    return repair.rebuild(data, SnapshotStore(folder / "store").open(), folding)


@pytest.mark.parametrize("seed", range(6))
async def test_a_repair_from_the_logs_brings_back_every_damaged_profile_as_it_was(tmp_path, seed):
    served = worlds.catalogue(tmp_path, seed=seed)
    rng = np.random.default_rng(seed)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        for part in range(3):
            events = worlds.random_events(rng, 150, users=6, now_s=NOW_S)
            await engine.record([one._replace(event_id=f"{part}-{one.event_id}") for one in events])
            await engine.set_segments(USERS[part], ["de"])
            pooled = rng.normal(size=(1, 16)).astype(np.float32)
            record = [2, 0, USERS[part + 2], ["a text"], "none", pooled.shape, pooled.tobytes()]
            await engine._log.append([record], lambda lsn, record=record: engine._replay(record, lsn))
            if part == 1:
                await engine.forget("u0")
        await engine.checkpoint()
        wanted = profiles_of(engine)
    data = as_data_folder(tmp_path)
    profiles = data / "g-test" / "shard-000" / "profiles"
    assert rebuild(data, tmp_path) == []
    for number, user in enumerate(["u0", "u3", "u4"]):
        damage(profiles, user.encode(), seed=10 * seed + number)
    assert [one.user_id for one in rebuild(data, tmp_path)] == ["u0", "u3", "u4"]
    async with worlds.engine(data / "g-test", served, **SETTINGS) as engine:
        assert profiles_of(engine) == wanted


async def test_a_profile_whose_key_was_damaged_is_found_by_its_log(tmp_path):
    served = worlds.catalogue(tmp_path)
    wanted = await live(tmp_path, served)
    data = as_data_folder(tmp_path)
    with closing(lmdb.open(str(data / "g-test" / "shard" / "profiles"), max_dbs=8, map_size=1 << 30)) as environment:
        profiles = environment.open_db(b"profiles")
        with environment.begin(write=True) as transaction:
            transaction.put(b"q1", transaction.pop(b"u1", db=profiles), db=profiles)
    assert [(one.user_id, one.event_count is None) for one in rebuild(data, tmp_path)] == [("u1", False), ("q1", True)]
    async with worlds.engine(data / "g-test", served, **SETTINGS) as engine:
        assert profiles_of(engine) == wanted
        assert engine.store.count() == len(USERS)


@pytest.mark.parametrize("gone", [False, True], ids=["stale", "missing"])
async def test_a_write_that_the_disk_lost_is_found_by_the_log_and_made_good(tmp_path, gone):
    """The profile of an earlier checkpoint is whole, and so is its checksum."""
    served = worlds.catalogue(tmp_path)
    first = await live(tmp_path, served, count=150)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        await engine.record([one._replace(event_id=f"later-{one.event_id}") for one in fresh_events(40)])
        await engine.checkpoint()
        wanted = profiles_of(engine)
    data = as_data_folder(tmp_path)
    assert damaged_users(data) == []
    with closing(lmdb.open(str(data / "g-test" / "shard" / "profiles"), max_dbs=8, map_size=1 << 30)) as environment:
        profiles = environment.open_db(b"profiles")
        with environment.begin(write=True) as transaction:
            transaction.delete(b"u1", db=profiles) if gone else transaction.put(b"u1", first["u1"], db=profiles)
    assert damaged_users(data) == ["u1"]
    assert [one.user_id for one in rebuild(data, tmp_path)] == ["u1"]
    async with worlds.engine(data / "g-test", served, **SETTINGS) as engine:
        assert profiles_of(engine) == wanted


async def test_a_profile_of_which_the_logs_hold_nothing_is_dropped_and_said_to_be(tmp_path, capsys):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    data = as_data_folder(tmp_path)
    (path,) = segments(data / "g-test" / "shard-000" / "log")
    last_lsn = [frame.first_lsn + len(frame.records) - 1 for frame in read_log(path.parent)][-1]
    path.rename(path.with_name(f"{path.name}.damaged"))
    damage(data / "g-test" / "shard-000" / "profiles")
    code = repair.main(["--data", str(data), "--snapshots", str(tmp_path / "store")])
    assert code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "profile 'u1': dropped: the logs hold nothing of it"
    assert shown[1].endswith(".log.damaged are missing: profiles that were made anew may lack events")
    assert shown[2] == "1 profiles were damaged"
    assert last_lsn > 300


async def test_more_than_profiles_needs_a_backup(tmp_path):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    data = as_data_folder(tmp_path)
    profiles = data / "g-test" / "shard-000" / "profiles"
    damage(profiles)
    damage(profiles, b"popularity", b"meta")
    before = (profiles / "data.mdb").read_bytes()
    with pytest.raises(BackupError, match=r"meta b'popularity'.*: more than profiles is damaged; name --backups"):
        rebuild(data, tmp_path)
    assert (profiles / "data.mdb").read_bytes() == before


async def test_a_member_that_is_damaged_leaves_its_segment_to_the_others(tmp_path):
    served = worlds.catalogue(tmp_path)
    events = worlds.random_events(np.random.default_rng(0), 300, users=6, now_s=NOW_S)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        await engine.record(events)
        for user in [*USERS, "new"]:
            await engine.set_segments(user, ["de"])
    damage(tmp_path / "shard" / "profiles")
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        answer = (await engine.recommend(Question("new", 5))).result
        assert isinstance(answer, Answer)
        assert answer.sources[0] == 4  # the five that are left make a segment


async def test_a_damaged_profile_can_be_deleted_with_all_that_names_the_user(tmp_path):
    served = worlds.catalogue(tmp_path, young=worlds.YOUNG)
    await live(tmp_path, served)
    damage(tmp_path / "shard" / "profiles")
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        assert any("u1" in heard.users for heard in engine.residuals.own.values())
        assert engine.store.segments.of("u1") == ["de"]
        assert await engine.forget("u1") == 0
        assert engine.profile("u1").event_count == 0
        (event,) = [one._replace(event_id="again", user_id="u1") for one in fresh_events(1)]
        fates, _ = await engine.record([event])
        assert fates[0].error is None
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        assert list(engine.profile("u1").events) == ["again"]
        assert not any("u1" in heard.users[:-1] for heard in engine.residuals.own.values())
        assert engine.store.segments.of("u1") == []


@pytest.mark.parametrize(("database", "key"), [(b"profiles", b"u1"), (b"segments", b"u1"), (b"meta", b"popularity")])
async def test_a_damaged_value_is_not_backed_up(tmp_path, database, key):
    """Else the sound ones would go with the older backups, and nobody would have been told."""
    await live(tmp_path, worlds.catalogue(tmp_path))
    data, store = as_data_folder(tmp_path), BackupStore(str(tmp_path / "backups"))
    taken = take_backup(data, store).backup_id
    damage(data / "g-test" / "shard-000" / "profiles", key, database, seed=3)
    with pytest.raises(DataFolderError, match=f"{database.decode()} {key!r}: .*run `heliotrope repair`"):
        take_backup(data, store)
    assert store.backup_ids() == [taken]


async def test_shards_are_not_cut_anew_without_a_damaged_profile(tmp_path):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    data, settings = as_data_folder(tmp_path), EngineSettings(ring_size=16, event_window_s=3 * worlds.DAY_S)
    damage(data / "g-test" / "shard-000" / "profiles")

    with pytest.raises(DataFolderError, match="1 shards cannot be cut into 2: the stored profile of user 'u1'"):
        await asyncio.to_thread(open_layout, data, 2, served.snapshot, settings, lambda catalogue, versions: None)
    assert read_layout(data) == Layout(generation="g-test", shards=1)


VALUES = [
    (b"meta", b"checkpoint"),
    (b"meta", b"popularity"),
    (b"segments", b"u1"),
]


@pytest.mark.parametrize(("database", "key"), VALUES, ids=[key.decode() for _, key in VALUES])
async def test_a_store_whose_own_values_are_damaged_is_refused_with_the_way_out(tmp_path, database, key):
    served = worlds.catalogue(tmp_path)
    await live(tmp_path, served)
    pristine = tmp_path / "pristine"
    shutil.copytree(tmp_path / "shard", pristine)
    for seed in range(12):
        shutil.rmtree(tmp_path / "shard")
        shutil.copytree(pristine, tmp_path / "shard")
        damage(tmp_path / "shard" / "profiles", key, database, seed=seed)
        with pytest.raises(DataFolderError) as caught:
            async with worlds.engine(tmp_path, served, **SETTINGS):
                pass
        message = str(caught.value)
        assert "has format version" in message or (
            f"the profile store in {tmp_path / 'shard' / 'profiles'} cannot be opened: " in message
            and "`heliotrope repair` or `heliotrope restore`" in message
        )
        assert "\n" not in message


def test_a_server_refuses_a_damaged_store_in_one_line(tmp_path):
    served = worlds.catalogue(tmp_path)
    asyncio.run(live(tmp_path, served))
    data = as_data_folder(tmp_path)
    profiles = data / "g-test" / "shard-000" / "profiles"
    damage(profiles, b"popularity", b"meta")
    code, message = refused_start(tmp_path / "store", data)
    assert code == 1
    assert f"the profile store in {profiles} cannot be opened" in message
    assert "Traceback" not in message
    content = bytearray((profiles / "data.mdb").read_bytes())
    (profiles / "data.mdb").write_bytes(content[: 3 * 4096])  # LMDB reads what is cut off and is ended by the system
    code, message = refused_start(tmp_path / "store", data)
    assert code == 1
    assert str(profiles) in message
    assert "docs/backup.md" in message
    assert "Traceback" not in message


def test_a_server_serves_all_but_the_damaged_user_and_all_again_after_a_repair(tmp_path, capsys):
    store, data = tmp_path / "store", tmp_path / "data"
    worlds.publish(store)
    users = [f"user-{number}" for number in range(20)]
    sent = [Event(user, f"i{number}", event_id=f"{user}-{number}") for user in users for number in range(3)]
    with running_server(store, data, "--shards", "2") as server, Client(server.address) as client:
        assert client.record_events(sent).rejected == []
        wanted = {user: listing(client, user) for user in users}
    layout = read_layout(data)
    for index in range(2):
        profiles = layout.shard_folder(data, index) / "profiles"
        damage(profiles, first_key(profiles))
    damaged = set(damaged_users(data))
    assert len(damaged) == 2
    with running_server(store, data, "--shards", "2") as server, Client(server.address) as client:
        for user in users:
            if user not in damaged:
                assert listing(client, user) == wanted[user]
                continue
            for call in (
                lambda user=user: client.recommend(user),
                lambda user=user: list(client.export_profile(user)),
                lambda user=user: client.update_profile(user, segments=["de"]),
            ):
                with pytest.raises(ServerError, match=f"the stored profile of user '{user}' cannot be read") as caught:
                    call()
                assert (caught.value.code.name, caught.value.reason) == ("DATA_LOSS", "PROFILE_DAMAGED")
        results = client.record_events([Event(user, "i9", event_id=f"{user}-more") for user in users]).results
        for user, result in zip(users, results, strict=True):
            refused = result.outcome == event_pb2.EVENT_OUTCOME_REJECTED
            assert refused == (user in damaged)
            assert result.error.reason == ("PROFILE_DAMAGED" if refused else "")
        client.delete_profile(max(damaged))
        assert len(list(client.export_profile(max(damaged)))) == 1
    assert damaged_users(data) == [min(damaged)]
    assert repair.main(["--data", str(data), "--snapshots", str(store)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"profile '{min(damaged)}': made anew of the logs, 3 events",
        "1 profiles were damaged",
    ]
    assert damaged_users(data) == []
    with running_server(store, data, "--shards", "2") as server, Client(server.address) as client:
        assert client.record_events([Event(min(damaged), "i9", event_id=f"{min(damaged)}-more")]).rejected == []
        events = [event.event_id for event in list(client.export_profile(min(damaged)))[1:]]
        assert sorted(events) == [f"{min(damaged)}-{end}" for end in (0, 1, 2, "more")]


def listing(client, user):
    answer = client.recommend(user, count=5, request_time=NOW_S)
    return [one.item_id for one in answer.recommendations]


def first_key(profiles):
    with closing(lmdb.open(str(profiles), max_dbs=8, map_size=1 << 30)) as environment:
        values = environment.open_db(b"profiles")
        with environment.begin(db=values) as transaction:
            cursor = transaction.cursor()
            assert cursor.first()
            return bytes(cursor.key())


def damaged_users(data):
    """The users whom `heliotrope verify` names."""
    report = Report()
    verify.verify_data(data, report)
    return sorted(re.search(r"profiles,? b?'(\w[\w-]*)'", problem)[1] for problem in report.problems)
