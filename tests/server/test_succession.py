"""A swap that was prepared ahead, while the world went on, ends in what a swap in one go ends in."""

import asyncio
import threading

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore
from heliotrope_server.activation import Activation
from heliotrope_server.answerer import Question
from heliotrope_server.catalogue_log import DELETE, encode_upsert
from heliotrope_server.engine import Engine
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.item_filter import ItemFilter, LabelIn
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.record_log import RecordLog
from tests.server import worlds

NOW_S = 1.7e9
WORLD = {"items": 600, "with_index": True, "young": worlds.YOUNG, "attributed": True}
C1 = ItemFilter((LabelIn("category", ("c1",)),))


def clock():
    return NOW_S


def new_item(number, seed=0):
    text = np.random.default_rng(1000 * seed + number).normal(size=16).astype(np.float32)
    item = CatalogItem(f"new{number}", f"New {number}", "", (f"c{number % 3}",))
    return encode_upsert(DeltaItem(item, text, None, 0.1, "", "none", NOW_S))


def likes(user, items, *, kind=EventKind.FAVORITE):
    return [
        UserEvent(user, f"{user}-{item}-{kind}", kind, item, 1.0, round((NOW_S - 50.0 - place) * 1e6))
        for place, item in enumerate(items)
    ]


async def change_catalogue(engine: Engine, log: RecordLog, records) -> None:
    await log.append(records, lambda lsn: lsn)
    engine.catch_up_catalogue()


async def first_half(engine: Engine, log: RecordLog) -> None:
    await change_catalogue(
        engine, log, [*(new_item(number) for number in range(400)), [DELETE, "i3"], [DELETE, "new7"]]
    )
    await engine.record(worlds.random_events(np.random.default_rng(1), 300, items=600, now_s=NOW_S))
    await engine.record([event for user in range(4) for event in likes(f"v{user}", ["i11", "i4", "new5"])])
    engine.popularity.merge_peer(1, ["i20", "new9"], [3.0, 2.0], engine.popularity.landmark_s, engine.catalogue.rows)


async def second_half(engine: Engine, log: RecordLog) -> None:
    """What comes between preparation and swap: new, replaced, removed and returned items, and events on all of them."""
    await change_catalogue(engine, log, [new_item(5, seed=1), new_item(900), [DELETE, "new6"], new_item(7)])
    await engine.record(likes("v9", ["i13", "i4", "new5", "new900", "new7", "i21"]))
    await engine.record(likes("v0", ["i4"], kind=EventKind.DISLIKE))
    engine.popularity.merge_peer(1, ["i20", "i30"], [5.0, 4.0], engine.popularity.landmark_s, engine.catalogue.rows)


async def state(engine: Engine):
    """What is served, by item id."""
    catalogue = engine.catalogue
    rows = {item_id: catalogue.rows[item_id] for item_id in catalogue.rows}
    counts = engine.popularity.counts_at(NOW_S)
    vectors = {item_id: catalogue.served_vector(row) for item_id, row in rows.items()}
    users = ["u0", "u1", "v0", "v9", "nobody"]
    asked = [Question(user, 20, filter=filter) for user in users for filter in (None, C1)]
    answers = [(await engine.recommend(question)).result for question in asked]
    return catalogue.version, {item_id: counts[row] for item_id, row in rows.items()}, vectors, answers


@pytest.mark.parametrize("landmark_moves", [False, True])
async def test_prepared_or_not_the_same_is_served(tmp_path, landmark_moves):
    found = []
    for prepared in (False, True):
        folder = tmp_path / str(prepared)
        served = worlds.catalogue(folder, **WORLD)
        version = worlds.publish(folder / "store", seed=1, **WORLD)
        log = RecordLog(folder / "catalogue")
        async with worlds.engine(folder, served, wall_clock=clock) as engine:
            store = SnapshotStore(folder / "store")
            await first_half(engine, log)
            # The filter is in use, so that it is made for the new snapshot too.
            await engine.recommend(Question("u0", 5, filter=C1))
            activation = Activation(engine, store)
            if prepared:
                await activation.prepare(version)
            await second_half(engine, log)
            if landmark_moves:
                engine.popularity.move_landmark(engine.popularity.landmark_s + 3600.0)
            if prepared:
                assert engine.catalogue is served
                await activation.commit(version)
                assert engine.successor is None
            else:
                fresh = LiveCatalogue(store.open(version))
                fresh.succeed(served)
                engine.adopt(fresh)
            found.append(await state(engine))
        log.close()
    (_, plain_counts, plain_vectors, plain_answers), (_, counts, vectors, answers) = found
    assert len(vectors) == 999 and any(count > 0.0 for count in counts.values())
    assert plain_counts == pytest.approx(counts)
    assert vectors.keys() == plain_vectors.keys()
    for item_id, vector in vectors.items():
        np.testing.assert_allclose(vector, plain_vectors[item_id], atol=1e-5)
    for plain, answer in zip(plain_answers, answers, strict=True):
        assert answer.item_ids == plain.item_ids
        np.testing.assert_allclose(answer.scores, plain.scores, rtol=1e-4, atol=1e-4)


async def test_what_comes_while_a_snapshot_is_prepared_is_not_lost(tmp_path):
    served = worlds.catalogue(tmp_path, **WORLD)
    version = worlds.publish(tmp_path / "store", seed=1, **WORLD)
    log, loading, go_on = RecordLog(tmp_path / "catalogue"), threading.Event(), threading.Event()

    def hold(_: LiveCatalogue) -> None:
        loading.set()
        assert go_on.wait(60.0)

    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await first_half(engine, log)
        activation = Activation(engine, SnapshotStore(tmp_path / "store"), hold)
        preparing = asyncio.create_task(activation.prepare(version))
        assert await asyncio.to_thread(loading.wait, 60.0)
        # In the middle of it: more changes than may be left for the event loop.
        await second_half(engine, log)
        await change_catalogue(engine, log, [new_item(number) for number in range(2000, 2200)])
        go_on.set()
        await preparing
        await activation.commit(version)
        catalogue = engine.catalogue
        assert catalogue.version == version
        assert all(f"new{number}" in catalogue.rows for number in (5, 7, 900, 2000, 2199))
        assert "new6" not in catalogue.rows and "i3" not in catalogue.rows
        assert engine.popularity.counts_at(NOW_S)[catalogue.rows["new900"]] == pytest.approx(1.0, rel=1e-3)
    log.close()


async def test_what_was_prepared_in_vain_is_let_go(tmp_path):
    served = worlds.catalogue(tmp_path)
    version = worlds.publish(tmp_path / "store", seed=1)
    async with worlds.engine(tmp_path, served) as engine:
        activation = Activation(engine, SnapshotStore(tmp_path / "store"))
        await activation.prepare(version)
        assert engine.successor is not None
        activation.abandon()
        assert engine.successor is None and engine.catalogue is served
        # A shard that was restarted after it had prepared is brought to what was decided all the same.
        await activation.commit(version)
        assert engine.catalogue.version == version
        assert await activation.commit(version) == 0.0
