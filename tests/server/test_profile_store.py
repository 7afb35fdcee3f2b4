"""Checkpoints that are broken off anywhere, against replaying the log alone."""

import asyncio
import shutil

import lmdb
import msgpack
import numpy as np
import pytest

from heliotrope_server import profile_store
from heliotrope_server.errors import StartError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.event_records import RECORD_DECLARE, RECORD_DELETE, RECORD_SEGMENTS
from heliotrope_server.profile_codec import PLAIN_KEY_ID, encode_profile
from heliotrope_server.store_values import META_KEY, UNFINISHED_VERSION
from tests.server import worlds

NOW_S = 1.7e9
USERS = [f"u{number}" for number in range(24)]
SETTINGS = {"wall_clock": lambda: NOW_S, "crash": True, "ring_size": 8, "event_window_s": 3 * worlds.DAY_S}


def some_events(rng, count, salt):
    """Events with duplicates, and undos of which some come before what they take back."""
    events = [
        one._replace(event_id=f"{salt}-{one.event_id}")
        for one in worlds.random_events(rng, count, users=len(USERS), items=30, now_s=NOW_S, days=6.0)
    ]
    undos = [
        UserEvent(one.user_id, f"undo-{one.event_id}", EventKind.UNDO, "", 1.0, one.time_us, one.event_id)
        for one in events[::5]
    ]
    every = [*events, *undos, *events[::7]]
    return [every[place] for place in rng.permutation(len(every))]


async def live(engine, rng, salt, count=250):
    """A while of everything that goes into the log."""
    for part in np.array_split(np.arange(count), 10):
        await engine.record(some_events(rng, len(part), f"{salt}-{part[0]}"))
        who = [USERS[place] for place in rng.choice(len(USERS), 3, replace=False)]
        pooled = rng.normal(size=(1, engine.catalogue.dimension)).astype(np.float32)
        await append(engine, [RECORD_DELETE, PLAIN_KEY_ID, who[0]])
        await append(engine, [RECORD_SEGMENTS, PLAIN_KEY_ID, who[1], [f"s{rng.integers(3)}"] * int(rng.integers(2))])
        await append(engine, [RECORD_DECLARE, PLAIN_KEY_ID, who[2], ["a text"], "none", pooled.shape, pooled.tobytes()])


async def append(engine, record):
    await engine._log.append([record], lambda lsn: engine._replay(record, lsn))


def everything(engine):
    """All that a store and its log bring back."""
    profiles = {user: engine.store.get(user, engine.catalogue) for user in USERS}
    members = {name: set(engine.store.segments.newest(name, 99)) for name in ("s0", "s1", "s2", "")}
    return (
        engine.applied_lsn,
        {user: encode_profile(one) for user, one in profiles.items() if one is not None and one.lsn},
        members,
        {item_id: (heard.users, heard.known, heard.said.tobytes()) for item_id, heard in engine.residuals.own.items()},
        engine.popularity.counts_at(NOW_S),
    )


def assert_same(found, wanted):
    assert found[:-1] == wanted[:-1]
    np.testing.assert_allclose(found[-1], wanted[-1], rtol=1e-9, atol=1e-9)


async def recovered(folder, served):
    async with worlds.engine(folder, served, **SETTINGS) as engine:
        return everything(engine), engine.store.checkpoint_lsn


@pytest.mark.parametrize("seed", range(4))
async def test_a_checkpoint_that_is_broken_off_after_any_transaction_loses_and_repeats_nothing(
    tmp_path, monkeypatch, seed
):
    monkeypatch.setattr(profile_store, "CHUNK", 3)
    monkeypatch.setattr(profile_store, "SETTLED", 5)
    rng = np.random.default_rng(seed)
    served = worlds.catalogue(tmp_path, young=worlds.YOUNG, seed=seed)
    images = []
    async with worlds.engine(tmp_path / "live", served, **SETTINGS) as engine:
        await live(engine, rng, "before")
        await engine.checkpoint()
        await live(engine, rng, "since")
        assert any(engine.profile(user).folded_count for user in USERS)
        commit, first_lsn = engine.store._commit, engine.store.checkpoint_lsn

        def commit_and_copy(*arguments):
            commit(*arguments)
            images.append(tmp_path / f"image-{len(images)}")
            shutil.copytree(tmp_path / "live", images[-1])

        engine.store._commit = commit_and_copy
        cut_lsn, checkpoint, number = engine.applied_lsn, asyncio.create_task(engine.checkpoint()), 0
        while not checkpoint.done():
            await engine.record(some_events(rng, 4, f"meanwhile-{number}"))
            number += 1
        wanted = everything(engine)
    assert len(images) > 4

    async def alone(image):
        """The log of an image, without its store."""
        shutil.rmtree(image / "shard" / "profiles")
        return (await recovered(image, served))[0]

    for number, image in enumerate(images):
        found, checkpoint_lsn = await recovered(image, served)
        assert checkpoint_lsn == (cut_lsn if number == len(images) - 1 else first_lsn)
        # By the store and the log, and by the log alone.
        assert_same(found, await alone(image))
    assert_same((await recovered(tmp_path / "live", served))[0], wanted)


async def test_a_checkpoint_that_the_disk_refused_half_way_is_made_good_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_store, "CHUNK", 3)
    rng = np.random.default_rng(9)
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        await live(engine, rng, "before")
        commit, calls = engine.store._commit, []

        def refuse_the_third(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise lmdb.DiskError("no space left")
            commit(*arguments)

        engine.store._commit = refuse_the_third
        await engine.checkpoint()
        assert (len(calls), engine.store.checkpoint_lsn) == (3, 0)
        with engine.store._env.begin(db=engine.store._meta_db) as transaction:
            assert msgpack.unpackb(transaction.get(META_KEY))["format_version"] == UNFINISHED_VERSION
        await live(engine, rng, "since", count=30)
        await engine.checkpoint()
        assert engine.store.checkpoint_lsn == engine.applied_lsn
        wanted = everything(engine)
    found, checkpoint_lsn = await recovered(tmp_path, served)
    assert checkpoint_lsn == wanted[0]
    assert_same(found, wanted)


async def test_an_unfinished_checkpoint_needs_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_store, "CHUNK", 3)
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path / "live", served, **SETTINGS) as engine:
        await live(engine, np.random.default_rng(3), "only")
        commit = engine.store._commit

        def commit_and_copy(*arguments):
            commit(*arguments)
            shutil.copytree(tmp_path / "live", tmp_path / "image", dirs_exist_ok=True)
            engine.store._commit = commit

        engine.store._commit = commit_and_copy
        await engine.checkpoint()
        cut_lsn = engine.store.checkpoint_lsn
    shutil.rmtree(tmp_path / "image" / "shard" / "log")
    with pytest.raises(StartError, match=f"ends at LSN 0, before the checkpoint at {cut_lsn}"):
        await recovered(tmp_path / "image", served)


async def test_a_profile_store_of_a_newer_server_is_refused(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, **SETTINGS) as engine:
        await engine.record(some_events(np.random.default_rng(1), 20, "x"))
        engine.store._commit([], None, msgpack.packb({"format_version": 5}))
    with pytest.raises(StartError, match="format version 5; this server reads 1 to 4"):
        await recovered(tmp_path, served)
