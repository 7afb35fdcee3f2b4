"""Ids on mapped memory, held to a list and a dictionary."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_indexer import item_ids as module
from heliotrope_indexer.item_ids import ItemIds, hash_table

IDS = st.lists(st.text(min_size=1), min_size=1, max_size=40, unique=True)


def of(ids: list[str]) -> ItemIds:
    return ItemIds(pa.array(ids, pa.string()), *hash_table(ids))


@given(IDS, st.text())
def test_every_id_has_its_row_and_every_row_its_id(ids, other):
    found = of(ids)
    assert list(found) == ids and found[:] == ids and found[-1] == ids[-1] and len(found) == len(ids)
    # Twice: what was asked for is kept.
    for _ in range(2):
        assert [found.row_of(item_id) for item_id in ids] == list(range(len(ids)))
        assert found.of(range(len(ids))) == ids
        assert found.row_of(other) == (ids.index(other) if other in ids else None)


def test_ids_of_equal_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "id_hash", lambda item_id: len(item_id))
    ids = ["b", "aa", "a", "bb", "c"]
    found = of(ids)
    assert [found.row_of(item_id) for item_id in ids] == [0, 1, 2, 3, 4]
    assert found.row_of("d") is None and found.row_of("cc") is None and found.row_of("ccc") is None


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 3)
    ids = [f"i{row}" for row in range(20)]
    found = of(ids)
    for row, item_id in enumerate(ids):
        assert found.row_of(item_id) == row and found.of([row]) == [item_id]
        assert len(found._kept_ids) <= 3 and len(found._kept_rows) <= 3


def test_a_slice_of_a_column_and_rows_outside():
    ids = ["x", "y", "z", "w"]
    part = pa.array(ids, pa.string()).slice(1, 2)
    found = ItemIds(part, *hash_table(ids[1:3]))
    assert list(found) == ["y", "z"] and found.row_of("z") == 1 and found.row_of("x") is None
    for row in (2, -3):
        with pytest.raises(IndexError, match=f"row {row} is outside of 0 .. 1"):
            found[row]


def test_hashes_are_those_of_the_format():
    """Snapshots on disk hold them: another hash would find nothing in them."""
    hashes, rows = hash_table(["a", "b", ""])
    assert dict(zip(rows.tolist(), hashes.tolist(), strict=True)) == {
        0: 0xE6C632B61E964E1F,
        1: 0x575A0B1C44D8843F,
        2: 0x2D06800538D394C2,
    }
    assert (np.diff(hashes.astype(object)) > 0).all()
