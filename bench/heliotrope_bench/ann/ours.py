"""Our retriever in the bench, called as the server calls it: `FaissRetriever.rank` with a live view."""

from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import Any

import numpy as np

from heliotrope_bench.ann.contender import Found, K, Point, Rows
from heliotrope_bench.errors import BenchError
from heliotrope_indexer.ann_index import EXACT_UP_TO, served_queries
from heliotrope_indexer.index_rows import index_rows
from heliotrope_indexer.parameters import SearchParameters
from heliotrope_indexer.snapshot import Snapshot
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView, live_view
from heliotrope_server.retriever import Retriever, make_retriever
from heliotrope_server.scoring import Query

OURS = "heliotrope"
SERVED = "as served"
"""The setting that the build chose."""
NPROBES = (1, 2, 4, 8, 16, 32, 64, 128)
MARGINS = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0)
_NONE_EXCLUDED = np.empty(0, dtype=np.int64)


def stored_rows(snapshot: Snapshot) -> Rows:
    """`[x ; b ; 0 pad]` of every item, as the index holds them."""
    return index_rows(np.array(snapshot.vectors), np.array(snapshot.bias))


def asked_rows(snapshot: Snapshot, count: int, seed: int) -> Rows:
    """Queries `[q ; 1 ; 0 pad]` of users that the build has not seen."""
    parameters = snapshot.parameters
    queries = served_queries(
        np.array(snapshot.vectors),
        np.array(snapshot.scoring_matrices),
        np.array(snapshot.prior),
        parameters.kappas,
        count=count,
        seed=seed,
    )
    return index_rows(queries, np.ones(count, dtype=np.float32))


def our_points(snapshot: Snapshot) -> Iterator[Point]:
    """The retriever as the snapshot has it served, and at other settings of the same index.

    Raises BenchError when the snapshot holds no index.
    """
    search = snapshot.parameters.search
    index: Any = snapshot.index()
    if search is None or index is None:
        raise BenchError(f"a catalogue of {len(snapshot):,} items has no index: give more than {EXACT_UP_TO:,}")
    catalogue = LiveCatalogue(snapshot)
    yield our_point(catalogue, search, SERVED)
    # Where the index leaves the head out, all of it is scored.
    for nprobe in (value for value in NPROBES if value <= index.nlist):
        for margin in MARGINS:
            setting = search.model_copy(update={"nprobe": nprobe, "margin": margin})
            yield our_point(catalogue, setting, f"head {search.head} nprobe {nprobe} margin {margin:g}")


def our_point(catalogue: LiveCatalogue, search: SearchParameters, setting: str) -> Point:
    """The retriever at one setting of its index."""
    served = copy(catalogue)
    served.parameters = catalogue.parameters.model_copy(update={"search": search})
    return _point(served, setting)


def served_point(snapshot: Snapshot) -> Point:
    """The retriever that the server makes for this snapshot, exact or not."""
    return _point(LiveCatalogue(snapshot), SERVED)


def _point(catalogue: LiveCatalogue, setting: str) -> Point:
    """Nothing is counted, added, removed or excluded."""
    retriever = make_retriever(catalogue)
    live = live_view(catalogue, np.zeros(catalogue.size))
    d = catalogue.dimension
    return Point(OURS, setting, partial(_single, retriever, live, d), partial(_batch, retriever, live, d))


def _single(retriever: Retriever, live: LiveView, d: int, query: Rows) -> Found:
    return retriever.rank([Query(query[:d], K, _NONE_EXCLUDED)], live)[0].rows


def _batch(retriever: Retriever, live: LiveView, d: int, queries: Rows) -> Found:
    found = retriever.rank([Query(query[:d], K, _NONE_EXCLUDED) for query in queries], live)
    return np.stack([ranking.rows for ranking in found])
