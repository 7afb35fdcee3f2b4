"""zvec in this process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen

_BATCH = 1_000


class Zvec(Peer):
    """See the module."""

    name = "zvec"
    kind = "in process"
    packages = ("zvec",)
    threaded = True
    description = f"HNSW m {LINKS}, ef_construction {BUILD_WIDTH}, float32"

    def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        import zvec

        self._library = zvec
        zvec.init(log_level=zvec.LogLevel.ERROR)
        graph = zvec.HnswIndexParam(metric_type=zvec.MetricType.IP, m=LINKS, ef_construction=BUILD_WIDTH)
        number = zvec.FieldSchema("row", zvec.DataType.INT64, nullable=False, index_param=zvec.InvertIndexParam())
        vector = zvec.VectorSchema("x", zvec.DataType.VECTOR_FP32, vectors.shape[1], index_param=graph)
        schema = zvec.CollectionSchema(name="items", fields=[number], vectors=[vector])
        # It wants to make the folder itself.
        self._collection = zvec.create_and_open(path=str(site.folder / "items"), schema=schema)
        for start in range(0, len(vectors), _BATCH):
            self._store(list(enumerate(vectors[start : start + _BATCH], start)))
        self._collection.optimize()

    def prepare(self, question: Question, search: Search) -> tuple[dict[str, Any], frozenset[int]]:
        library = self._library
        query = library.Query(field_name="x", vector=question.vector, param=library.HnswQueryParam(ef=search.width))
        seen = ",".join(map(str, question.seen))
        arguments = {
            "queries": query,
            "topk": search.limit(question),
            "filter": f"row not in ({seen})" if search.filtered and seen else "",
            "output_fields": [],
            "include_vector": False,
        }
        return arguments, frozenset(question.seen)

    def search(self, prepared: tuple[dict[str, Any], frozenset[int]]) -> Found:
        arguments, seen = prepared
        documents = self._collection.query(**arguments)
        return unseen([int(one.id) for one in documents], [one.score for one in documents], seen)

    def upsert(self, items: Sequence[NewItem]) -> None:
        self._store([(item.row, item.vector) for item in items])

    def close(self) -> None:
        self._collection.close()

    def _store(self, rows: list[tuple[int, NDArray[np.float32]]]) -> None:
        documents = [self._library.Doc(id=str(row), vectors={"x": vector}, fields={"row": row}) for row, vector in rows]
        self._collection.upsert(documents)
