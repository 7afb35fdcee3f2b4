import shutil
from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from heliotrope_server.activation import Activation, learn_old_maps
from heliotrope_server.answerer import Question
from heliotrope_server.errors import SnapshotUnusableError
from heliotrope_server.folded_maps import keep_map, kept_map
from heliotrope_server.live_catalogue import LiveCatalogue
from tests.server import worlds

NOW_S = 1.7e9


def publish_rotated(store: SnapshotStore, draft, seed=5) -> tuple[str, np.ndarray]:
    """The current snapshot in a rotated space: every score that depends on taste alone must stay the same."""
    old = store.open()
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(old.vectors.shape[1],) * 2))
    write_snapshot(
        draft,
        items=[CatalogItem(item_id, old.item(row).title) for row, item_id in enumerate(old.item_ids)],
        vectors=old.vectors @ rotation,
        bias=old.bias,
        prior=old.prior @ rotation,
        scoring_matrices=np.einsum("ed,hef,fg->hdg", rotation, old.scoring_matrices, rotation),
        parameters=old.parameters,
    )
    return store.publish(draft), rotation


async def answers(engine):
    asked = [Question(f"u{number}", 50, time_s=NOW_S) for number in range(5)]
    return [(await engine.recommend(question)).result for question in asked]


async def test_profiles_move_to_a_rotated_space_with_their_folded_part(tmp_path):
    served = worlds.catalogue(tmp_path)
    store = SnapshotStore(tmp_path / "store")
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S, ring_size=8) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 200, now_s=NOW_S, days=60.0))
        assert engine.profile("u0").folded_count > 0
        before = await answers(engine)
        version, _ = publish_rotated(store, tmp_path / "rotated")
        activation = Activation(engine, store)
        await activation.prepare(version)
        assert (await answers(engine))[0].snapshot_version == served.version
        assert activation.commit(version) < 1e-4
        after = await answers(engine)
        for old, new in zip(before, after, strict=True):
            assert new.snapshot_version == version
            assert new.item_ids[:10] == old.item_ids[:10]
            np.testing.assert_allclose(new.scores, old.scores, rtol=1e-3, atol=1e-3)


async def test_folded_sums_are_carried_over_when_the_swap_came_while_the_server_was_down(tmp_path):
    served = worlds.catalogue(tmp_path)
    store = SnapshotStore(tmp_path / "store")
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S, ring_size=8) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 200, now_s=NOW_S, days=60.0))
        before = await answers(engine)
    version, _ = publish_rotated(store, tmp_path / "rotated")
    catalogue = LiveCatalogue(store.open())
    learn_old_maps(store, catalogue, {served.version})
    async with worlds.engine(tmp_path, catalogue, wall_clock=lambda: NOW_S, ring_size=8) as engine:
        for old, new in zip(before, await answers(engine), strict=True):
            assert new.snapshot_version == version
            np.testing.assert_allclose(new.scores, old.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("behind_url", [False, True], ids=["folder", "url"])
async def test_folded_sums_outlive_the_snapshots_that_they_were_folded_under(tmp_path, behind_url):
    """The user comes back after four more snapshots, of which only the last is left."""
    served = worlds.catalogue(tmp_path)
    path = f"memory://{tmp_path}/store" if behind_url else tmp_path / "store"
    store = SnapshotStore(path, cache=tmp_path / "cache" if behind_url else None)
    if behind_url:
        draft = Path(shutil.copytree(tmp_path / "store" / served.version, tmp_path / "draft"))
        assert store.publish(draft) == served.version
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S, ring_size=8) as engine:
        await engine.record(worlds.random_events(np.random.default_rng(1), 200, now_s=NOW_S, days=60.0))
        assert engine.profile("u0").folded_count > 0
        before = await answers(engine)
    versions = [served.version]
    for number in range(4):
        versions.append(publish_rotated(store, tmp_path / f"rotated-{number}", seed=number)[0])
        if number % 2:  # two at a time, so that one map leads to the next
            for version in versions[-3:-1]:
                assert keep_map(store, version, [LiveCatalogue(store.open())]) == versions[-1]
                store.remove(version)
    assert store.versions() == versions[-1:]
    catalogue = LiveCatalogue(store.open())
    learn_old_maps(store, catalogue, {served.version})
    async with worlds.engine(tmp_path, catalogue, wall_clock=lambda: NOW_S, ring_size=8) as engine:
        assert engine.profile("u0").folded_share(catalogue.parameters) > 0.1
        for old, new in zip(before, await answers(engine), strict=True):
            assert new.snapshot_version == versions[-1]
            np.testing.assert_allclose(new.scores, old.scores, rtol=1e-3, atol=1e-3)


def test_a_kept_map_that_is_damaged_is_said_and_not_used(tmp_path, caplog):
    served = worlds.catalogue(tmp_path)
    store = SnapshotStore(tmp_path / "store")
    publish_rotated(store, tmp_path / "rotated")
    keep_map(store, served.version, [LiveCatalogue(store.open())])
    store.remove(served.version)
    path = tmp_path / "store" / "maps" / served.version
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert kept_map(store, served.version, LiveCatalogue(store.open())) is None
    assert f"the kept map of snapshot {served.version} is damaged" in caplog.text


async def test_a_catalogue_with_no_shared_items_admits_that_nothing_can_be_carried_over(tmp_path):
    served = worlds.catalogue(tmp_path)
    store = SnapshotStore(tmp_path / "store")
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S) as engine:
        version = worlds.publish(tmp_path / "store", seed=3, first_item=1000)
        activation = Activation(engine, store)
        await activation.prepare(version)
        assert activation.commit(version) == 1.0
        assert (await engine.recommend(Question("u0", 5))).result.item_ids


async def test_committing_what_was_not_prepared_is_refused(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served) as engine:
        activation = Activation(engine, SnapshotStore(tmp_path / "store"))
        with pytest.raises(SnapshotUnusableError, match="not prepared"):
            activation.commit("20200101T000000Z-0123456789ab")
        assert activation.commit(served.version) == 0.0
        with pytest.raises(SnapshotUnusableError):
            await activation.prepare("20200101T000000Z-0123456789ab")
