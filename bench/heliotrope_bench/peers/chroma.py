"""Chroma's own server, asked over HTTP with requests that were serialised before.

Its search width belongs to the collection and is read when the index is loaded, so a change restarts the server.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.errors import PeerError
from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen
from heliotrope_bench.peers.server_process import ServerProcess, free_port, listens

_BATCH = 1_000
_PATH = "/api/v2/tenants/default_tenant/databases/default_database/collections"
_JSON = {"Content-Type": "application/json"}


class Chroma(Peer):
    """See the module."""

    name = "Chroma"
    kind = "server"
    packages = ("chromadb", "aiohttp")
    description = f"HNSW max_neighbors {LINKS}, ef_construction {BUILD_WIDTH}, float32; HTTP, kept-alive connections"

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        self._site = site
        self._port = free_port()
        await self._start()
        graph = {"space": "ip", "max_neighbors": LINKS, "ef_construction": BUILD_WIDTH}
        made = await self._call("POST", "", {"name": "items", "configuration": {"hnsw": graph}})
        self._collection = f"/{made['id']}"
        for start in range(0, len(vectors), _BATCH):
            await self._store(range(start, start + _BATCH), vectors[start : start + _BATCH])
        # What was stored is indexed by the first question at the latest.
        await self._call("POST", f"{self._collection}/query", _query(vectors[0], 1))

    async def use(self, search: Search) -> None:
        await self._call("PUT", self._collection, {"new_configuration": {"hnsw": {"ef_search": search.width}}})
        await self._stop()
        await self._start()

    def prepare(self, question: Question, search: Search) -> tuple[bytes, frozenset[int]]:
        body = _query(question.vector, search.limit(question))
        if search.filtered and question.seen:
            body["where"] = {"row": {"$nin": list(question.seen)}}
        return json.dumps(body).encode(), frozenset(question.seen)

    async def search(self, prepared: tuple[bytes, frozenset[int]]) -> Found:
        body, seen = prepared
        answer = await self._send("POST", f"{self._collection}/query", body)
        scores = [-distance for distance in answer["distances"][0]]
        return unseen([int(name) for name in answer["ids"][0]], scores, seen)

    async def upsert(self, items: Sequence[NewItem]) -> None:
        await self._store([item.row for item in items], np.stack([item.vector for item in items]))

    def server_pid(self) -> int:
        return self._server.pid

    async def close(self) -> None:
        if hasattr(self, "_session"):
            await self._stop()

    async def _start(self) -> None:
        import aiohttp

        command = [_program(), "run", "--path", str(self._site.folder / "data"), "--host", "127.0.0.1"]
        port = self._port
        self._server = ServerProcess(
            [*command, "--port", str(port)], self._site.folder, self._site.server_cpus, lambda: listens(port)
        )
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector)

    async def _stop(self) -> None:
        await self._session.close()
        await asyncio.to_thread(self._server.stop)

    async def _store(self, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
        taken = list(rows)[: len(vectors)]
        body = {
            "ids": [str(row) for row in taken],
            "embeddings": vectors.tolist(),
            "metadatas": [{"row": row} for row in taken],
        }
        await self._call("POST", f"{self._collection}/upsert", body)

    async def _call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        return await self._send(method, path, json.dumps(body).encode())

    async def _send(self, method: str, path: str, body: bytes) -> Any:
        async with self._session.request(method, _PATH + path, data=body, headers=_JSON) as response:
            text = await response.read()
            if response.status >= 300:
                raise PeerError(f"Chroma answered {method} {path} with {response.status}: {text[:200]!r}")
        return json.loads(text)


def _query(vector: NDArray[np.float32], count: int) -> dict[str, Any]:
    return {"query_embeddings": [vector.tolist()], "n_results": count, "include": ["distances"]}


def _program() -> str:
    """The command that the wheel installs beside the interpreter, else the one on the path."""
    beside = Path(sys.executable).with_name("chroma")
    found = str(beside) if beside.is_file() else shutil.which("chroma")
    if found is None:
        raise PeerError(f"chromadb is installed, its command `chroma` is neither {beside} nor on the path")
    return found
