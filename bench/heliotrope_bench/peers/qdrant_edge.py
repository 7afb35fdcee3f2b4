"""Qdrant's engine in this process (qdrant-edge-py): what stands behind its server, without the calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen

_BATCH = 1_000
_FULL_SCAN_BELOW_KB = 1
"""Searches go through the graph however few rows there are."""


class QdrantEdge(Peer):
    """See the module."""

    name = "Qdrant engine"
    kind = "in process"
    packages = ("qdrant_edge",)
    threaded = True
    description = f"HNSW m {LINKS}, ef_construct {BUILD_WIDTH}, float32"

    def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        import qdrant_edge as qdrant

        self._library = qdrant
        graph = qdrant.HnswIndexConfig(m=LINKS, ef_construct=BUILD_WIDTH, full_scan_threshold=_FULL_SCAN_BELOW_KB)
        self._shard = qdrant.EdgeShard.create(
            str(site.folder),
            qdrant.EdgeConfig(
                vectors=qdrant.EdgeVectorParams(size=vectors.shape[1], distance=qdrant.Distance.Dot, hnsw_config=graph),
                optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1),
            ),
        )
        for start in range(0, len(vectors), _BATCH):
            block = vectors[start : start + _BATCH].tolist()
            self._store([(start + place, vector) for place, vector in enumerate(block)])
        self._shard.optimize()

    def prepare(self, question: Question, search: Search) -> tuple[Any, frozenset[int]]:
        library = self._library
        leave_out = library.Filter(must_not=[library.HasIdCondition(set(question.seen))]) if search.filtered else None
        request = library.QueryRequest(
            limit=search.limit(question),
            query=library.Query.Nearest(question.vector.tolist()),
            filter=leave_out,
            params=library.SearchParams(hnsw_ef=search.width),
        )
        return request, frozenset(question.seen)

    def search(self, prepared: tuple[Any, frozenset[int]]) -> Found:
        request, seen = prepared
        points = self._shard.query(request)
        return unseen([point.id for point in points], [point.score for point in points], seen)

    def upsert(self, items: Sequence[NewItem]) -> None:
        self._store([(item.row, item.vector.tolist()) for item in items])

    def close(self) -> None:
        self._shard.close()

    def _store(self, rows: list[tuple[int, list[float]]]) -> None:
        points = [self._library.Point(row, vector, None) for row, vector in rows]
        self._shard.update(self._library.UpdateOperation.upsert_points(points))
