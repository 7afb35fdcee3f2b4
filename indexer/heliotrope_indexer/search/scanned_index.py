"""The arrays of a FAISS index that the compiled kernel scans by itself (ivf_scan.h)."""

import ctypes
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search.added_lists import BLOCK, AddedLists
from heliotrope_indexer.search.library import InvertedStruct, IvfStruct

_MOST_SUBQUANTISERS, _MOST_COLUMNS = 128, 1024

_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


class ScannedIndex:
    """Points into an index, which it holds, and says how long its longest list is. `added` are lists beside its own for
    rows that it does not know.
    """

    def __init__(self, index: Any) -> None:
        """Raises ValueError for an index of another kind than the kernel reads."""
        # What downcast_index returns does not keep what it was given.
        self._index, index = index, faiss.downcast_index(index)
        problem = _problem(index)
        if problem is not None:
            raise ValueError(f"the kernel cannot scan this index: {problem}")
        quantizer: Any = faiss.downcast_index(index.quantizer)
        lists, product, width = index.nlist, index.pq, index.d
        flat = faiss.rev_swig_ptr(quantizer.get_xb(), lists * width).reshape(lists, width)
        self._centroids = np.array(flat, dtype=np.float32)
        self._codebook = faiss.vector_to_array(product.centroids).astype(np.float32)
        inverted = index.invlists
        every = range(lists)
        self._sizes = np.array([inverted.list_size(number) for number in every], dtype=np.int64)
        self._codes = np.array([int(inverted.get_codes(number)) for number in every], dtype=np.uint64)
        self._rows = np.array([int(inverted.get_ids(number)) for number in every], dtype=np.uint64)
        self._most = np.zeros(lists, dtype=np.uint64)
        self.error, self.spread = (np.zeros(width, dtype=np.float32) for _ in range(2))
        self.added = AddedLists(lists, -(-product.M // 2) * BLOCK, width)
        self.lists, self.codes = lists, product.M
        centroids, codebook, *stored = (
            part.ctypes.data
            for part in (self._centroids, self._codebook, self._codes, self._rows, self._sizes, self.error)
        )
        self.pointers = IvfStruct(
            *(lists, product.M, product.dsub, width),
            *(centroids, codebook, InvertedStruct(*stored), self.added.pointers),
            *(self.spread.ctypes.data, self._most.ctypes.data),
        )

    @property
    def longest(self) -> int:
        """Rows of the longest list, stored or added."""
        return max(int(self._sizes.max(initial=0)), self.added.longest)

    def row_count(self) -> int:
        """One more than the largest row number in the lists."""
        return max((int(rows.max()) for rows in self._row_lists() if len(rows)), default=-1) + 1

    def know_bias(self, bias: NDArray[np.float32]) -> None:
        """Lays out the largest bias from each block of a list to its end: where the rows of a list are in the order of
        their bias (n,), a search can leave its end out.
        """
        self._most_bias = []  # the kernel points into them
        for list_, rows in enumerate(self._row_lists()):
            from_here = np.fmax.accumulate(bias[rows][::-1])[::-1]
            self._most_bias.append(np.ascontiguousarray(from_here[::BLOCK]))
            self._most[list_] = self._most_bias[-1].ctypes.data

    def _row_lists(self) -> Iterator[NDArray[np.int64]]:
        """The row numbers of each list."""
        for address, size in zip(self._rows.tolist(), self._sizes.tolist(), strict=True):
            yield np.ctypeslib.as_array((ctypes.c_int64 * size).from_address(address)) if size else _NO_ROWS


def _problem(index: Any) -> str | None:
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        return f"it is a {type(index).__name__}"
    if not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlatIP):
        return f"its quantiser is a {type(faiss.downcast_index(index.quantizer)).__name__}"
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.by_residual:
        return "its codes are not residuals of inner products"
    if index.bbs != BLOCK or index.pq.M > _MOST_SUBQUANTISERS or index.d > _MOST_COLUMNS:
        return f"it has blocks of {index.bbs}, {index.pq.M} sub-quantisers and {index.d} columns"
    return None
