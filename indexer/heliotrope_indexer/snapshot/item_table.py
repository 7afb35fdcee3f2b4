"""The items of a snapshot as an Arrow table, and as columns that filters read.

Columns of attributes are there only where some item has such an attribute, so a snapshot without any is what it always
was, and one written before items had attributes reads as one whose items have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
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
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]


class Entries(NamedTuple):
    """The values that items have under one key: their rows (e,), ascending, and the values (e,)."""

    rows: NDArray[np.int64]
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
    """The columns of a table of n items as arrays."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def categories(self) -> Labels:
        column = _chunk(self._table.column("categories"))
        encoded = column.flatten().dictionary_encode()
        return Labels(encoded.dictionary.to_pylist(), _rows(column), encoded.indices.to_numpy().astype(np.int64))

    def providers(self) -> Labels:
        """Providers; an item without one has no entry."""
        if "provider" not in self._table.column_names:
            nothing = np.empty(0, dtype=np.int64)
            return Labels([], nothing, nothing)
        encoded = _chunk(self._table.column("provider")).dictionary_encode()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
        rows = np.flatnonzero(codes != names.index("")) if "" in names else np.arange(len(codes))
        return Labels(names, rows, codes[rows])

    def scalar(self, name: str) -> NDArray[np.float64]:
        """`price`, `available_from` or `available_until`, (n,); NaN where an item has none."""
        if name not in self._table.column_names:
            return np.full(len(self), np.nan)
        values: NDArray[np.float64] = _chunk(self._table.column(name)).to_numpy(zero_copy_only=False)
        return values

    def has_scalar(self, name: str) -> bool:
        """Whether any item has it."""
        return name in self._table.column_names

    def entries(self, kind: str, key: str) -> Entries:
        """The values under one key of `text_attributes` (as objects), `number_attributes` or `flag_attributes`."""
        if kind not in self._table.column_names:
            return Entries(np.empty(0, dtype=np.int64), np.empty(0, dtype=object))
        column = _chunk(self._table.column(kind))
        begin, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
        places = np.flatnonzero(pa.compute.equal(column.keys.slice(begin, end - begin), key))
        values = column.items.slice(begin, end - begin).take(pa.array(places))
        return Entries(_rows(column)[places], values.to_numpy(zero_copy_only=False))


def _rows(column: pa.Array) -> NDArray[np.int64]:
    """The row of every entry of a column of lists."""
    return np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
