"""Lists of rows that came after an index was built, in the layout that the kernel scans (ivf_scan.h).

The index's own centroids and code words serve them: new texts of the same model fall into the same places. So nothing
is trained, a row is added in microseconds, and one search visits both kinds of lists.
"""

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search.library import InvertedStruct

BLOCK = 32
"""Rows whose codes lie together, as in FAISS's lists."""


class AddedLists:
    """Lists that grow. A list that has no room left moves to one of twice the size: not while the kernel reads it."""

    def __init__(self, lists: int, block_bytes: int, width: int) -> None:
        """`block_bytes` are those of the codes of BLOCK rows; `width` is the number of columns."""
        self._block_bytes = block_bytes
        self._codes = [np.empty(0, dtype=np.uint8)] * lists
        self._rows = [np.empty(0, dtype=np.int64)] * lists
        self._sizes = np.zeros(lists, dtype=np.int64)
        self._room = np.zeros(lists, dtype=np.int64)
        self._codes_at, self._rows_at = (np.zeros(lists, dtype=np.uint64) for _ in range(2))
        # The largest mean square that the codes left of any rows that were added together, by column.
        self.error = np.zeros(width, dtype=np.float32)
        self.pointers = InvertedStruct(
            *(self._codes_at.ctypes.data, self._rows_at.ctypes.data, self._sizes.ctypes.data, self.error.ctypes.data)
        )

    def __len__(self) -> int:
        return int(self._sizes.sum())

    @property
    def longest(self) -> int:
        return int(self._sizes.max(initial=0))

    @property
    def nbytes(self) -> int:
        """What rows and codes take, room to grow included."""
        return sum(codes.nbytes + rows.nbytes for codes, rows in zip(self._codes, self._rows, strict=True))

    def make_room(self, lists: NDArray[np.int64]) -> None:
        """For one more row in each of these lists (k,), which may stand in it several times."""
        needed = self._sizes + np.bincount(lists, minlength=len(self._sizes))
        for number in np.flatnonzero(needed > self._room).tolist():
            blocks = -(-max(int(needed[number]), 2 * int(self._room[number])) // BLOCK)
            codes, rows = np.zeros(blocks * self._block_bytes, np.uint8), np.zeros(blocks * BLOCK, np.int64)
            codes[: len(self._codes[number])], rows[: len(self._rows[number])] = self._codes[number], self._rows[number]
            self._codes[number], self._rows[number], self._room[number] = codes, rows, blocks * BLOCK
            self._codes_at[number], self._rows_at[number] = codes.ctypes.data, rows.ctypes.data
