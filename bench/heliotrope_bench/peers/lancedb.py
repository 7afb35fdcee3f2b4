"""LanceDB in this process, through its asyncio API."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen


class LanceDb(Peer):
    """See the module."""

    name = "LanceDB"
    kind = "in process"
    packages = ("lancedb", "pyarrow")
    description = f"HNSW m {LINKS}, ef_construction {BUILD_WIDTH}, float32, one partition"

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        import lancedb
        from lancedb.index import HnswFlat

        database = await lancedb.connect_async(str(site.folder))
        self._table = await database.create_table("items", _table(range(len(vectors)), vectors))
        graph = HnswFlat(distance_type="dot", num_partitions=1, m=LINKS, ef_construction=BUILD_WIDTH)
        await self._table.create_index("x", config=graph)

    def prepare(self, question: Question, search: Search) -> tuple[Any, frozenset[int]]:
        limit = search.limit(question)
        query = self._table.query().nearest_to(question.vector).column("x").distance_type("dot")
        # It refuses a width below the number of rows that are wanted.
        query = query.nprobes(1).ef(max(search.width, limit)).select(["row", "_distance"]).limit(limit)
        if search.filtered and question.seen:
            query = query.where(f"row NOT IN ({','.join(map(str, question.seen))})")
        return query, frozenset(question.seen)

    async def search(self, prepared: tuple[Any, frozenset[int]]) -> Found:
        query, seen = prepared
        table = await query.to_arrow()
        # Its distance is 1 - the product.
        scores = [1.0 - distance for distance in table["_distance"].to_pylist()]
        return unseen(table["row"].to_pylist(), scores, seen)

    async def upsert(self, items: Sequence[NewItem]) -> None:
        rows = _table([item.row for item in items], np.stack([item.vector for item in items]))
        merge = self._table.merge_insert("row").when_matched_update_all().when_not_matched_insert_all()
        await merge.execute(rows)


def _table(rows: Sequence[int], vectors: NDArray[np.float32]) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    columns = [pa.array(rows, pa.int64()), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    return pa.table(columns, names=["row", "x"])
