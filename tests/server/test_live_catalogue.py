"""Vectors by item number are those by item id."""

import numpy as np

from heliotrope_indexer.snapshot import CatalogItem
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
