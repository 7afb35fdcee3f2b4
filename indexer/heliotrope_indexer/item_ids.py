"""The ids of a snapshot's items by row, and the row of an id, on mapped memory.

A Python list and dictionary of a million ids take 200 MB for each shard and a second at every start. Here the ids stay
in the mapped Arrow file and are found by their hashes, which the snapshot holds in ascending order; all shards of a
host share both. What was asked for lately is kept, so that a popular item costs what a dictionary does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

_KEPT = 1 << 16
"""Ids and rows that are kept as Python objects, about 10 MB; all are dropped when there are more."""


class ItemIds(Sequence[str]):
    """n ids in row order. `hashes` (n,) ascend and `rows` (n,) are where each belongs; see `hash_table`."""

    def __init__(self, ids: pa.StringArray, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        # A memoryview is searched without a NumPy scalar for each comparison.
        self._hashes, self._rows = np.asarray(hashes).data, np.asarray(rows).data
        _, offsets, text = ids.buffers()
        self._length = len(ids)
        self._offsets = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].data
        # Arrow's bytes are signed: unlike ours, they would equal none above 127.
        self._text = memoryview(text if text is not None else b"").cast("B")
        self._kept_ids: dict[int, str] = {}
        self._kept_rows: dict[str, int] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._read(one) for one in range(*row.indices(self._length))]
        if not -self._length <= row < self._length:
            raise IndexError(f"row {row} is outside of 0 .. {self._length - 1}")
        return self._read(row % self._length)

    def of(self, rows: Iterable[int]) -> list[str]:
        """The ids of rows from 0 to n - 1, which are kept."""
        kept = self._kept_ids
        return [kept[row] if row in kept else self._keep(row) for row in rows]

    def row_of(self, item_id: str) -> int | None:
        """The row of an id, None for one that is not here."""
        found = self._kept_rows.get(item_id)
        if found is not None:
            return found
        wanted = item_id.encode()
        hashed = id_hash(wanted)
        place = bisect_left(self._hashes, hashed)
        while place < self._length and self._hashes[place] == hashed:
            row = self._rows[place]
            if self._bytes(row) == wanted:
                if len(self._kept_rows) >= _KEPT:
                    self._kept_rows.clear()
                self._kept_rows[item_id] = row
                return row
            place += 1
        return None

    def _keep(self, row: int) -> str:
        if len(self._kept_ids) >= _KEPT:
            self._kept_ids.clear()
        self._kept_ids[row] = item_id = self._read(row)
        return item_id

    def _read(self, row: int) -> str:
        return str(self._bytes(row), "utf-8")

    def _bytes(self, row: int) -> memoryview:
        return self._text[self._offsets[row] : self._offsets[row + 1]]


def hash_table(item_ids: Iterable[str]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Hashes of the ids in ascending order (n,), and the row of each (n,)."""
    hashes = np.array([id_hash(item_id.encode()) for item_id in item_ids], dtype=np.uint64)
    rows = np.argsort(hashes, kind="stable").astype(np.int32)
    return hashes[rows], rows


def id_hash(item_id: bytes) -> int:
    """64 bits of xxh3: part of the format of snapshots."""
    return xxhash.xxh3_64_intdigest(item_id)
