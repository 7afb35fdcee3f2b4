"""Milvus Lite's own gRPC server, asked through pymilvus's asyncio client."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen
from heliotrope_bench.peers.server_process import ServerProcess, free_port, listens

_BATCH = 1_000


class MilvusLite(Peer):
    """See the module."""

    name = "Milvus Lite"
    kind = "server"
    packages = ("milvus_lite", "pymilvus")
    description = f"HNSW M {LINKS}, efConstruction {BUILD_WIDTH}, float32; gRPC"

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        from pymilvus import AsyncMilvusClient, DataType, MilvusClient

        port = free_port()
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(site.folder), "--port", str(port)]
        self._server = ServerProcess(command, site.folder, site.server_cpus, lambda: listens(port))
        address = f"http://127.0.0.1:{port}"
        # Its asyncio client asks for time stamps that Milvus Lite does not give when it makes an index.
        self._writer = MilvusClient(address)
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("x", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        index = MilvusClient.prepare_index_params()
        index.add_index("x", index_type="HNSW", metric_type="IP", params={"M": LINKS, "efConstruction": BUILD_WIDTH})
        self._writer.create_collection("items", schema=schema)
        for start in range(0, len(vectors), _BATCH):
            block = vectors[start : start + _BATCH].tolist()
            self._writer.insert("items", [{"row": start + place, "x": vector} for place, vector in enumerate(block)])
        self._writer.flush("items")
        self._writer.create_index("items", index)
        self._writer.load_collection("items")
        self._reader = AsyncMilvusClient(address)

    def prepare(self, question: Question, search: Search) -> tuple[dict[str, Any], frozenset[int]]:
        seen = ", ".join(map(str, question.seen))
        arguments = {
            "data": [question.vector.tolist()],
            "limit": search.limit(question),
            "filter": f"row not in [{seen}]" if search.filtered and seen else "",
            "output_fields": ["row"],
            "search_params": {"metric_type": "IP", "params": {"ef": search.width}},
            "anns_field": "x",
        }
        return arguments, frozenset(question.seen)

    async def search(self, prepared: tuple[dict[str, Any], frozenset[int]]) -> Found:
        arguments, seen = prepared
        (hits,) = await self._reader.search("items", **arguments)
        return unseen([hit["row"] for hit in hits], [hit["distance"] for hit in hits], seen)

    async def upsert(self, items: Sequence[NewItem]) -> None:
        rows = [{"row": item.row, "x": item.vector.tolist()} for item in items]
        await asyncio.to_thread(self._writer.upsert, "items", rows)

    def server_pid(self) -> int:
        return self._server.pid

    async def close(self) -> None:
        if hasattr(self, "_reader"):
            await self._reader.close()
        if hasattr(self, "_writer"):
            self._writer.close()
        if hasattr(self, "_server"):
            self._server.stop()
