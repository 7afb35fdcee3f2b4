"""The items of a snapshot as an Arrow table, and as columns that filters read.

Columns of attributes are there only where some item has such an attribute, so a snapshot without any is what it always
was, and one written before items had attributes reads as one whose items have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes
from heliotrope_indexer.catalog_item import CatalogItem

_SCALARS = {"price": "price", "available_from": "available_from_s", "available_until": "available_until_s"}
_KINDS = {
    "text_attributes": ("texts", pa.string()),
    "number_attributes": ("numbers", pa.float64()),
    "flag_attributes": ("flags", pa.bool_()),
}


class Labels(NamedTuple):
    """Names of all items: `names` (m), and for every entry its row and its name's place, both (e,), rows ascending."""

    names: list[str]
    rows: NDArray[np.int32]
    codes: NDArray[np.int32]


class Entries(NamedTuple):
    """The values that items have under one key: their rows (e,), ascending, and the values (e,)."""

    rows: NDArray[np.int32]
    values: NDArray[Any]


def item_table(items: Sequence[CatalogItem]) -> pa.Table:
    """The table of some items; Unix seconds for times, NULL for what is not set."""
    columns: dict[str, pa.Array] = {
        "item_id": pa.array([item.item_id for item in items], pa.string()),
        "title": pa.array([item.title for item in items], pa.string()),
        "description": pa.array([item.description for item in items], pa.string()),
        "categories": pa.array([list(item.categories) for item in items], pa.list_(pa.string())),
        "provider": pa.array([item.provider for item in items], pa.string()),
    }
    for name, field in _SCALARS.items():
        scalars = [getattr(item.attributes, field) for item in items]
        if any(value is not None for value in scalars):
            columns[name] = pa.array(scalars, pa.float64())
    for name, (field, kind) in _KINDS.items():
        entries = [getattr(item.attributes, field) for item in items]
        if any(entries):
            columns[name] = pa.array(entries, pa.map_(pa.string(), kind))
    return pa.table(columns)


def joined_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """The table of the items of one or more tables, in order."""
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default").combine_chunks()


def item_attributes(table: pa.Table, row: int) -> Attributes:
    """The attributes of one row."""
    read: dict[str, Any] = {
        field: table.column(name)[row].as_py() for name, field in _SCALARS.items() if name in table.column_names
    }
    read |= {
        field: tuple(table.column(name)[row].as_py())
        for name, (field, _) in _KINDS.items()
        if name in table.column_names
    }
    return Attributes(**read) if read else NO_ATTRIBUTES


class ItemColumns:
    """The columns of a table of n items as arrays, made anew by every call."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def categories(self) -> Labels:
        column = _chunk(self._table.column("categories"))
        return _labels(column.flatten().dictionary_encode(), _rows(column))

    def providers(self) -> Labels:
        """Providers; an item without one has no entry."""
        if "provider" not in self._table.column_names:
            return Labels([], np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
        labels = _labels(
            _chunk(self._table.column("provider")).dictionary_encode(), np.arange(len(self), dtype=np.int32)
        )
        if "" not in labels.names:
            return labels
        named = labels.codes != labels.names.index("")
        return Labels(labels.names, labels.rows[named], labels.codes[named])

    def scalar(self, name: str) -> NDArray[np.float64]:
        """`price`, `available_from` or `available_until`, (n,); NaN where an item has none."""
        if name not in self._table.column_names:
            return np.full(len(self), np.nan)
        values: NDArray[np.float64] = _chunk(self._table.column(name)).to_numpy(zero_copy_only=False)
        return values

    def keys(self, kind: str) -> set[str]:
        """The keys of `text_attributes`, `number_attributes` or `flag_attributes` that any item has."""
        if kind not in self._table.column_names:
            return set()
        return set(_keys(_chunk(self._table.column(kind))).unique().to_pylist())

    def entries(self, kind: str, key: str) -> Entries:
        """The values under one of the `keys`; texts as objects."""
        column = _chunk(self._table.column(kind))
        places = np.flatnonzero(pc.equal(_keys(column), key))
        begin = column.offsets[0].as_py()
        values = column.items.take(pa.array(places + begin))
        return Entries(_rows(column)[places], values.to_numpy(zero_copy_only=False))


def _labels(encoded: pa.DictionaryArray, rows: NDArray[np.int32]) -> Labels:
    return Labels(encoded.dictionary.to_pylist(), rows, encoded.indices.to_numpy().astype(np.int32))


def _keys(column: pa.MapArray) -> pa.Array:
    """The key of every entry."""
    begin, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    return column.keys.slice(begin, end - begin)


def _rows(column: pa.Array) -> NDArray[np.int32]:
    """The row of every entry of a column of lists or maps."""
    return np.repeat(np.arange(len(column), dtype=np.int32), np.diff(column.offsets.to_numpy()))


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
