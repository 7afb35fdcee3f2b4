"""The compiled exact pass (rank_kernel.c), where it was built; see build_kernel.py for how.

It does for a whole batch in one call what `scoring` says: every candidate once, all terms, exclusions, the
best few. NumPy's price is by call and by candidate.
"""

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LazyBoosts, LiveView
from heliotrope_server.plain_ranking import Best
from heliotrope_server.scanned_index import ScannedIndex
from heliotrope_server.scoring import Query

LIBRARY = Path(__file__).with_name("librank_kernel.so")
_STAMPS = 2**32 - 2**20
"""Stamps are 32-bit numbers, and start again before they are used up."""

logger = logging.getLogger(__name__)


class _Block(ctypes.Structure):
    """`block` of the C file."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("vectors", ctypes.c_void_p),
        ("terms", ctypes.c_void_p),
    )


class _Job(ctypes.Structure):
    """`job` of the C file, in its order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("queries", "d", "asked_step", "found_each", "wanted", "base_count")),
        *((name, ctypes.c_void_p) for name in ("vectors", "bias", "boosts", "counts")),
        ("factor", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("weight", "outside", "intercept")),
        *((name, _Block) for name in ("moved", "fresh", "trending", "head")),
        *((name, ctypes.c_void_p) for name in ("alive", "stamps", "gain_of", "asked", "found")),
        ("index", ctypes.c_void_p),
        ("probes", ctypes.c_int64),
        ("margin", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("closeness", "order", "places", "sums")),
        *((name, ctypes.c_void_p) for name in ("excluded", "excluded_ends", "suggested", "suggested_ends", "gains")),
        ("stamp", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("best_rows", "best_scores", "sizes", "last_base")),
    )


@cache
def kernel() -> Any:
    """The function of the library, or None where it was not built or does not load here, which is logged once."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        logger.warning("scoring without the compiled kernel, at some half of the speed: %s", error)
        return None
    library.heliotrope_rank.argtypes = (ctypes.POINTER(_Job),)
    library.heliotrope_rank.restype = None
    return library


class CompiledRanking:
    """Ranks the candidates of one catalogue's queries. Not for two threads at once."""

    def __init__(self, catalogue: LiveCatalogue, head: NDArray[np.int64]) -> None:
        """`head` are the rows that are scored for every query. Raises RuntimeError where there is no kernel."""
        library = kernel()
        if library is None:
            raise RuntimeError(f"there is no compiled kernel at {LIBRARY.name}")
        self._library = library
        self._rank = library.heliotrope_rank
        self._vectors = np.ascontiguousarray(catalogue.base_vectors)
        self._bias = np.ascontiguousarray(catalogue.base_bias)
        self._head, self._head_vectors, self._head_bias = head, self._vectors[head], self._bias[head]
        self._job = _Job(d=catalogue.dimension, base_count=catalogue.base_count)
        self._job.intercept = catalogue.parameters.intercept
        self._job.vectors, self._job.bias = _address(self._vectors), _address(self._bias)
        self._reference = ctypes.byref(self._job)
        self._live: LiveView | None = None
        self._held: tuple[NDArray[Any], ...] = ()
        self._size = 0

    def scan(self, index: ScannedIndex, probes: int, margin: float) -> None:
        """From now on searches `probes` lists of an index too, for rows whose codes put them within `margin` standard
        deviations of the codes' error of the list in the making.
        """
        if index.row_count() > self._job.base_count:
            raise ValueError(f"the index names row {index.row_count() - 1} of {self._job.base_count}")
        self._library.heliotrope_errors(
            ctypes.byref(index.pointers),
            *(ctypes.c_void_p(self._job.vectors), ctypes.c_void_p(self._job.bias)),
            ctypes.c_int64(self._job.d),
            ctypes.c_void_p(index.pointers.error),
        )
        self._scanned = index
        self._closeness = np.empty(index.lists, dtype=np.float32)
        self._order = np.empty(index.lists, dtype=np.int64)
        self._places = np.empty(index.longest, dtype=np.int32)
        self._sums = np.empty(index.longest, dtype=np.uint16)
        job = self._job
        job.index, job.probes, job.margin = ctypes.addressof(index.pointers), min(probes, index.lists), margin
        job.closeness, job.order = _address(self._closeness), _address(self._order)
        job.places, job.sums = _address(self._places), _address(self._sums)

    def best(
        self,
        queries: Sequence[Query],
        asked: NDArray[np.float32],
        found: NDArray[np.int64],
        live: LiveView,
        wanted: int,
    ) -> Best:
        """See PlainRanking.best."""
        if live is not self._live:
            self._look_at(live)
        job, m = self._job, len(queries)
        excluded, excluded_ends = _joined([query.excluded for query in queries])
        suggested = [query.suggestions for query in queries]
        if any(suggestions is not None for suggestions in suggested):
            rows, suggested_ends = _joined([_NO_ROWS if said is None else said.rows for said in suggested])
            gains = np.concatenate([said.gains for said in suggested if said is not None])
        else:
            rows, suggested_ends, gains = _NO_ROWS, np.zeros(m, dtype=np.int64), _NO_GAINS
        best_rows = np.empty((m, wanted), dtype=np.int64)
        best_scores = np.empty((m, wanted), dtype=np.float32)
        sizes = np.empty(m, dtype=np.int64)
        last_base = np.empty(m, dtype=np.float32)
        if job.stamp > _STAMPS:
            self._stamps[:] = 0
            job.stamp = 0
        job.queries, job.asked_step, job.found_each, job.wanted = m, asked.shape[1], found.shape[1], wanted
        job.asked, job.found = _address(asked), _address(found)
        job.excluded, job.excluded_ends = _address(excluded), _address(excluded_ends)
        job.suggested, job.suggested_ends, job.gains = _address(rows), _address(suggested_ends), _address(gains)
        job.best_rows, job.best_scores = _address(best_rows), _address(best_scores)
        job.sizes, job.last_base = _address(sizes), _address(last_base)
        self._rank(self._reference)
        return Best(best_rows, best_scores, sizes, last_base)

    def _look_at(self, live: LiveView) -> None:
        """Points the job to the arrays of a view, which are held as long as it does."""
        job, boosts = self._job, live.boosts
        size = job.base_count + len(live.delta_bias)
        if size > self._size:
            self._size = size + size // 4
            self._stamps = np.zeros(self._size, dtype=np.uint32)
            self._gain_of = np.zeros(self._size, dtype=np.float32)
            job.stamp, job.stamps, job.gain_of = 0, _address(self._stamps), _address(self._gain_of)
        fresh = np.arange(job.base_count, size)
        fresh_terms = live.delta_bias + boosts[job.base_count : size]
        head_terms = self._head_bias + boosts[self._head]
        alive = live.alive
        if isinstance(boosts, LazyBoosts):
            job.boosts, job.counts = None, _address(boosts.counts)
            job.factor, job.weight = boosts.factor, boosts.weight
            held: NDArray[Any] = boosts.counts
        else:
            job.boosts, job.counts, held = _address(boosts), None, boosts
        job.outside = live.outside
        job.moved = _block(live.moved, live.moved_vectors, live.moved_terms)
        job.fresh = _block(fresh, live.delta_vectors, fresh_terms)
        job.trending = _block(live.trending, live.trending_vectors, live.trending_terms)
        job.head = _block(self._head, self._head_vectors, head_terms)
        job.alive = None if alive is None else _address(alive)
        self._live, self._held = live, (fresh, fresh_terms, head_terms, held)


_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
_NO_GAINS: NDArray[np.float32] = np.empty(0, dtype=np.float32)


def _joined(parts: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All rows, one part after the other, and where each part ends."""
    if len(parts) == 1:
        return parts[0], np.array([len(parts[0])])
    return np.concatenate(parts), np.cumsum([len(part) for part in parts])


def _block(rows: NDArray[np.int64], vectors: NDArray[np.float32], terms: NDArray[np.float32]) -> _Block:
    return _Block(len(rows), _address(rows), _address(vectors), _address(terms))


def _address(array: NDArray[Any]) -> int:
    """Where a contiguous array begins."""
    assert array.flags.c_contiguous, f"an array of the strides {array.strides} is not contiguous"
    address: int = array.__array_interface__["data"][0]
    return address
