"""Vectors by item number are those by item id."""

import numpy as np

from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.item_numbers import item_id_of, known_number, number_of
from heliotrope_server.live_catalogue import DeltaItem
from tests.server import worlds


def test_vectors_of_snapshot_delta_removed_and_unknown_items_in_any_order(tmp_path):
    served = worlds.catalogue(tmp_path, items=30, dimension=6)
    rng = np.random.default_rng(0)
    ids = [f"i{number}" for number in range(30)] + ["nowhere", "added", "came-and-went"]
    for round_ in range(2):
        numbers = np.array([number_of(item_id) for item_id in rng.permutation(ids)], dtype=np.int32)
        found, known = served.vectors(numbers)
        for number, vector, is_known in zip(numbers.tolist(), found, known.tolist(), strict=True):
            expected = served.vector(item_id_of(number))
            assert is_known == (expected is not None)
            np.testing.assert_array_equal(vector, np.zeros(6) if expected is None else expected)
        assert known.sum() == 30 + 2 * round_
        living = {served.rows[item_id] for item_id in ids if item_id in served.rows}
        assert set(served.rows_of(numbers).tolist()) == living and len(living) == 30
        for item_id in ("added", "came-and-went", "i3"):
            pooled = rng.normal(size=6).astype(np.float32)
            served.upsert(DeltaItem(CatalogItem(item_id, "a title"), pooled, pooled, 0.0, served.version, "none"))
        served.delete("came-and-went")
        served.delete("i4")


def test_a_number_stands_for_one_item_id():
    assert known_number("never asked for") is None
    numbers = [number_of(item_id) for item_id in ("numbered", "numbered as well", "numbered")]
    assert numbers[0] == numbers[2] != numbers[1]
    assert [item_id_of(number) for number in numbers] == ["numbered", "numbered as well", "numbered"]


async def test_what_a_user_has_seen_follows_every_move_of_its_rows(tmp_path):
    served = worlds.catalogue(tmp_path)

    def event(item_id):
        return UserEvent("u", f"e-{item_id}", EventKind.VIEW, item_id, 1.0, 1_699_000_000_000_000)

    def entry(item_id):
        return DeltaItem(CatalogItem(item_id, "t"), np.ones(16, np.float32), None, 9.0, served.version, "none")

    async with worlds.engine(tmp_path, served, wall_clock=lambda: 1.7e9) as engine:
        seen = {"i3", "i5"}
        await engine.record([event(item_id) for item_id in sorted(seen)])

        async def listed():
            engine.popularity.grow(served.size)
            engine.answerer.follow()
            return set((await engine.recommend(Question("u", 500))).result.item_ids)

        assert not await listed() & seen
        before = served.moves
        served.upsert(entry("never-heard-of"))
        assert served.moves == before and "never-heard-of" in await listed()
        for change in (served.upsert, lambda one: served.delete(one.item.item_id), served.upsert):
            change(entry("i3"))
            assert served.moves > before and not await listed() & seen
            before = served.moves
        await engine.record([event("never-heard-of")])
        assert "never-heard-of" not in await listed()
