"""Ids and rows of a catalogue that changes, held to a list and a dictionary."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_indexer.item_ids import ItemIds, hash_table
from heliotrope_server.served_ids import ServedIds, ServedRows

BASE = [f"i{row}" for row in range(5)]
CHANGES = st.lists(st.tuples(st.booleans(), st.sampled_from([*BASE, "new", "other"])), max_size=12)


@given(CHANGES)
def test_any_changes_leave_what_they_leave_in_a_dictionary(changes):
    base = ItemIds(pa.array(BASE, pa.string()), *hash_table(BASE))
    ids, rows = ServedIds(base), ServedRows(base)
    plain_ids, plain_rows = list(BASE), {item_id: row for row, item_id in enumerate(BASE)}
    for removed, item_id in changes:
        if removed:
            assert rows.pop(item_id) == plain_rows.pop(item_id, None)
        else:
            rows[item_id] = plain_rows[item_id] = len(plain_ids)
            ids.append(item_id)
            plain_ids.append(item_id)
        assert dict(rows) == plain_rows and len(rows) == len(plain_rows)
        assert list(ids) == plain_ids and ids[2:6] == plain_ids[2:6]
        assert ids.of(list(range(len(ids)))) == plain_ids
        for name in [*BASE, "new", "other", "never"]:
            assert (name in rows) == (name in plain_rows) and rows.get(name, -1) == plain_rows.get(name, -1)
