"""One call for a whole batch of queries: search, exact scores with all terms, exclusions, the best few.

NumPy's price is by call and by candidate, and FAISS first collects a fixed number of candidates. The kernel knows the
list in the making: it scores exactly those rows whose codes put them within some standard deviations of its end.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import index_rows
from heliotrope_indexer.search.library import BlockStruct, JobStruct, load
from heliotrope_indexer.search.scanned_index import ScannedIndex

_STAMPS = 2**32 - 2**20
"""Stamps are 32-bit numbers, and start again before they are used up."""
_DEVIATION_OVER_MEDIAN = 1.4826
"""Standard deviation of normal values over the median of their sizes."""
_FIRST_QUERIES, _FIRST_CELLS = 64, 1024


class Block(NamedTuple):
    """Rows (k,) that are scored for every query, their vectors (k, d), and what a score holds beyond taste (k,)."""

    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]
    terms: NDArray[np.float32]


class Extras(NamedTuple):
    """What stands beside the snapshot's own vectors and biases at some moment, for n rows of which the first are its.

    `boosts` (n,) or weight * log1p(counts (n,) * factor) is added to each row's score; no row but the `trending` and
    `moved` ones, and the `fresh`, has more than `outside` of it. `moved` are rows of the snapshot with another vector,
    `fresh` those beyond it that are scored for every query. `beyond` are the vectors (m, d) and biases (m,) of all rows
    beyond it, for those that the lists of the index hold (`SearchKernel.add`) or that are suggested. `alive` (n,) is
    None when all rows are.
    """

    size: int
    boosts: NDArray[np.float32] | None = None
    counts: NDArray[np.float64] | None = None
    factor: float = 1.0
    weight: float = 0.0
    outside: float = 0.0
    moved: Block | None = None
    fresh: Block | None = None
    trending: Block | None = None
    beyond: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    alive: NDArray[np.bool_] | None = None
    head_boosts: NDArray[np.float32] | None = None


class Best(NamedTuple):
    """The best rows of m queries (m, k) with their scores (m, k), best first; `sizes` (m,) of them are there.

    `last_base` (m,) is the least taste and bias of what was found elsewhere for each, infinity where that was nothing.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    sizes: NDArray[np.int64]
    last_base: NDArray[np.float32]


class SearchKernel:
    """Over the vectors (n, d) and biases (n,) of one snapshot. Not for two threads at once."""

    def __init__(
        self, vectors: NDArray[np.float32], bias: NDArray[np.float32], head: NDArray[np.int64], intercept: float = 0.0
    ) -> None:
        """`head` are the rows that are scored for every query. Raises OSError where there is no kernel."""
        self._library = load()
        self._vectors, self._bias = vectors, bias
        self._head, self._head_vectors, self._head_bias = head, vectors[head], bias[head]
        self._job = JobStruct(d=vectors.shape[1], base_count=len(vectors), intercept=intercept)
        self._job.vectors, self._job.bias = _address(vectors), _address(bias)
        self._reference = ctypes.byref(self._job)
        self._size = self._most = self._cells = 0
        self._scanned: ScannedIndex | None = None
        self._probes = 0
        self._places: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self.use(Extras(len(vectors)))

    def scan(self, index: ScannedIndex, probes: int, margin: float, *, portable: bool = False) -> None:
        """From now on searches the `probes` nearest lists of an index, for rows whose codes put them within `margin`
        standard deviations of the codes' error of the list in the making.

        `portable` scans as on processors that have no instructions for it. Raises ValueError for an index of other
        vectors.
        """
        if index.row_count() > self._job.base_count:
            raise ValueError(f"the index names row {index.row_count() - 1} of a snapshot of {self._job.base_count}")
        job = self._job
        if index.pointers.width <= job.d:
            raise ValueError(f"the index has {index.pointers.width} columns, too few for {job.d} dimensions and a bias")
        index.know_bias(self._bias)
        left = _address(index.error), _address(index.spread)
        self._library.heliotrope_errors(index.pointers, job.vectors, job.bias, job.d, *left)
        np.maximum(index.added.error, index.error, out=index.added.error)
        self._scanned = index
        self._most = 0  # the queries get the columns of the index
        self._closeness = np.empty(index.lists, dtype=np.float32)
        self._order = np.empty(index.lists, dtype=np.int64)
        self._probes = min(probes, index.lists)
        job.index, job.margin = ctypes.addressof(index.pointers), margin
        job.portable = portable
        job.closeness, job.order = _address(self._closeness), _address(self._order)
        self._make_places(index.longest)

    def add(
        self, numbers: NDArray[np.int64], vectors: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Takes rows beyond the snapshot (k,), with vectors (k, d) and biases (k,), into lists beside the index's own.

        They are found from the next `use` of Extras that reach them. Returns which were taken, (k,): not those whose
        bias lies above its code by more than the margin allows for, which must be scored for every query. Raises
        ValueError for rows of the snapshot and where no index is scanned.
        """
        index, job = self._scanned, self._job
        if index is None:
            raise ValueError("no index is scanned, to which rows could be added")
        if len(numbers) and int(numbers.min()) < job.base_count:
            raise ValueError(f"row {numbers.min()} is one of the snapshot, which has {job.base_count}")
        added, width = index.added, index.pointers.width
        rows, count = index_rows(vectors, bias, width), len(numbers)
        lists, codes = np.empty(count, dtype=np.int64), np.empty((count, index.codes), dtype=np.uint8)
        left = np.empty((count, width), dtype=np.float32)
        self._library.heliotrope_encode(
            *(index.pointers, count, _address(rows), _address(self._closeness)),
            *(_address(lists), _address(codes), _address(left)),
        )
        if not count:
            return np.empty(0, dtype=np.bool_)
        # By the median, which the few that are far off do not move: what is taken must be within what is allowed for.
        usual = (_DEVIATION_OVER_MEDIAN * float(np.median(np.abs(left[:, job.d])))) ** 2
        added.error[job.d] = max(float(added.error[job.d]), usual)
        taken: NDArray[np.bool_] = left[:, job.d] <= job.margin * np.sqrt(added.error[job.d])
        if taken.any():
            np.maximum(added.error, (left[taken] ** 2).mean(axis=0), out=added.error)
            numbers, lists, codes = numbers[taken], lists[taken], codes[taken]
            added.make_room(lists)
            self._library.heliotrope_append(
                index.pointers, len(numbers), _address(numbers), _address(lists), _address(codes)
            )
            self._make_places(index.longest)
        return taken

    def use(self, extras: Extras) -> None:
        """From now on scores with these. Raises ValueError for short arrays and rows that are not there."""
        job = self._job
        _check(extras, job.base_count)
        job.rows = extras.size
        if extras.size > self._size:
            self._size = extras.size + extras.size // 4
            self._stamps = np.zeros(self._size, dtype=np.uint32)
            self._gain_of = np.zeros(self._size, dtype=np.float32)
            job.stamp, job.stamps, job.gain_of = 0, _address(self._stamps), _address(self._gain_of)
        job.boosts, job.counts = _maybe(extras.boosts), _maybe(extras.counts)
        job.factor, job.weight, job.outside = extras.factor, extras.weight, extras.outside
        job.known = job.base_count
        if extras.beyond is not None:
            job.known = extras.size
            job.beyond_vectors, job.beyond_bias = map(_address, extras.beyond)
        for name in ("moved", "fresh", "trending"):
            block = getattr(extras, name)
            setattr(job, name, BlockStruct() if block is None else _struct(block))
        terms = self._head_bias if extras.head_boosts is None else self._head_bias + extras.head_boosts
        head = Block(self._head, self._head_vectors, terms)
        job.head, job.alive = _struct(head), _maybe(extras.alive)
        # Held for as long as the job points into them.
        self._held = extras, head

    def best(
        self,
        vectors: Sequence[NDArray[np.float32]] | NDArray[np.float32],
        wanted: int,
        excluded: Sequence[NDArray[np.int64]],
        *,
        found: NDArray[np.int64] | None = None,
        suggested: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]] | None = None,
        allowed: Sequence[NDArray[np.bool_] | None] | None = None,
        added_only: bool = False,
    ) -> Best:
        """The best `wanted` for each of m queries q (d,); ties go to the smaller row.

        `excluded` are the rows that each query must not get. `found` (m, c) are candidates from elsewhere, -1 for none.
        `suggested` are rows of all queries, one query after the other, where each one's end, and what their scores
        gain. `allowed` (n,) are the only rows that a query may get. `added_only` searches the lists of added rows, all
        of them, and no others.
        """
        job, m = self._job, len(vectors)
        if m > self._most or m * wanted > self._cells:
            self._make_room(m, m * wanted)
        asked, d = self._asked, job.d
        for place in range(m):
            asked[place, :d] = vectors[place]
        if m == 1:
            left_out = excluded[0]
            self._ends[0] = len(left_out)
        else:
            left_out, self._ends[:m] = joined(excluded)
        if job.stamp > _STAMPS:
            self._stamps[:] = 0
            job.stamp = 0
        if self._scanned is not None:
            job.added_only, job.probes = added_only, self._scanned.lists if added_only else self._probes
        job.queries, job.wanted, job.excluded = m, wanted, _address(left_out)
        job.found_each, job.found = (0, None) if found is None else (found.shape[1], _address(found))
        if suggested is None:
            job.suggested_ends = self._zeros_at
        else:
            rows, suggested_ends, gains = suggested
            job.suggested, job.suggested_ends, job.gains = _address(rows), _address(suggested_ends), _address(gains)
        if allowed is None:
            job.allowed = None
        else:
            if any(mask is not None and len(mask) < job.rows for mask in allowed):
                raise ValueError(f"a mask of allowed rows is shorter than the {job.rows} rows")
            masks = np.array([0 if mask is None else _address(mask) for mask in allowed], dtype=np.uint64)
            job.allowed = _address(masks)
        self._library.heliotrope_rank(self._reference)
        return Best(
            self._best_rows[: m * wanted].reshape(m, wanted).copy(),
            self._best_scores[: m * wanted].reshape(m, wanted).copy(),
            self._sizes[:m].copy(),
            self._last_base[:m].copy(),
        )

    def _make_places(self, longest: int) -> None:
        """Room for what passes of the longest list."""
        if longest > len(self._places):
            self._places = np.empty(longest + longest // 4, dtype=np.int32)
            self._sums = np.empty(len(self._places), dtype=np.uint16)
            self._job.places, self._job.sums = _address(self._places), _address(self._sums)

    def _make_room(self, queries: int, cells: int) -> None:
        """Arrays for so many queries and results, which are used again and again: their addresses cost microseconds."""
        job = self._job
        self._most, self._cells = max(queries, _FIRST_QUERIES), max(cells, _FIRST_CELLS)
        width = job.d if self._scanned is None else self._scanned.pointers.width
        self._asked = np.zeros((self._most, width), dtype=np.float32)
        if width > job.d:
            self._asked[:, job.d] = 1.0
        self._ends, self._zeros = (np.zeros(self._most, dtype=np.int64) for _ in range(2))
        self._best_rows = np.empty(self._cells, dtype=np.int64)
        self._best_scores = np.empty(self._cells, dtype=np.float32)
        self._sizes = np.empty(self._most, dtype=np.int64)
        self._last_base = np.empty(self._most, dtype=np.float32)
        job.asked, job.asked_step, job.excluded_ends = _address(self._asked), width, _address(self._ends)
        job.best_rows, job.best_scores = _address(self._best_rows), _address(self._best_scores)
        job.sizes, job.last_base = _address(self._sizes), _address(self._last_base)
        self._zeros_at = _address(self._zeros)


def _check(extras: Extras, base_count: int) -> None:
    for array in (extras.boosts, extras.counts, extras.alive):
        if array is not None and len(array) < extras.size:
            raise ValueError(f"{len(array)} values for {extras.size} rows")
    if extras.beyond is not None:
        vectors, biases = map(len, extras.beyond)
        if not vectors == biases == extras.size - base_count:
            raise ValueError(
                f"{vectors} vectors and {biases} biases for {extras.size - base_count} rows beyond the snapshot"
            )
    for block, end in ((extras.moved, base_count), (extras.trending, extras.size), (extras.fresh, extras.size)):
        if block is None or not len(block.rows):
            continue
        if not len(block.rows) == len(block.vectors) == len(block.terms):
            raise ValueError(f"{len(block.rows)} rows with {len(block.vectors)} vectors and {len(block.terms)} terms")
        if int(block.rows.min()) < 0 or int(block.rows.max()) >= end:
            raise ValueError(f"rows {block.rows.min()} to {block.rows.max()} are not all below {end}")


def joined(parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All rows, one part after the other, and where each part ends."""
    return np.concatenate(parts), np.cumsum([len(part) for part in parts])


def _struct(block: Block) -> BlockStruct:
    return BlockStruct(len(block.rows), _address(block.rows), _address(block.vectors), _address(block.terms))


def _maybe(array: NDArray[Any] | None) -> int | None:
    return None if array is None else _address(array)


def _address(array: NDArray[Any]) -> int:
    """Where a contiguous array begins."""
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of the strides {array.strides} is not contiguous")
    address: int = array.__array_interface__["data"][0]
    return address
