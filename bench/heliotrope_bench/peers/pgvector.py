"""PostgreSQL with pgvector, both from the wheel pgserver, asked over a Unix socket with prepared statements.

PostgreSQL refuses to run as root: then its processes run as `nobody`, who must be able to read the environment that
pgserver is installed in.
"""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.errors import PeerError
from heliotrope_bench.peers.peer import BUILD_WIDTH, LINKS, Found, NewItem, Peer, Question, Search, Site, unseen
from heliotrope_bench.peers.server_process import ServerProcess

UNPRIVILEGED = "nobody"
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "512MB",
    # The graph is built in memory.
    "maintenance_work_mem": "1GB",
    "max_parallel_maintenance_workers": "0",
}
_BATCH = 2_000
_PRODUCT = "x <#> $1::real[]::vector"
_ALL = f"SELECT row, -({_PRODUCT}) FROM items ORDER BY {_PRODUCT} LIMIT $2"
_UNSEEN = f"SELECT row, -({_PRODUCT}) FROM items WHERE row <> ALL($3::int[]) ORDER BY {_PRODUCT} LIMIT $2"
_UPSERT = "INSERT INTO items VALUES ($1, $2::real[]::vector) ON CONFLICT (row) DO UPDATE SET x = excluded.x"


class PgVector(Peer):
    """See the module."""

    name = "pgvector"
    kind = "server"
    packages = ("pgserver", "asyncpg")
    description = f"HNSW m {LINKS}, ef_construction {BUILD_WIDTH}, float32; Unix socket, a connection for each caller"

    async def load(self, vectors: NDArray[np.float32], site: Site) -> None:
        import asyncpg

        # A folder of its own, that another user may be given; the path of a Unix socket must be short, too.
        data = self._data = Path(tempfile.mkdtemp(prefix="heliotrope-pg-"))
        user = _make_cluster(data)
        command = [str(_binaries() / "postgres"), "-D", str(data), "-k", str(data)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        socket = data / ".s.PGSQL.5432"
        self._server = ServerProcess(command, data, site.server_cpus, socket.exists, user=user)
        self._writer = await _connection(data)
        await self._writer.execute("CREATE EXTENSION vector")
        await self._writer.execute(f"CREATE TABLE items (row int PRIMARY KEY, x vector({vectors.shape[1]}))")
        for start in range(0, len(vectors), _BATCH):
            block = vectors[start : start + _BATCH].tolist()
            await self._writer.executemany(_UPSERT, [(start + place, vector) for place, vector in enumerate(block)])
        await self._writer.execute(
            f"CREATE INDEX ON items USING hnsw (x vector_ip_ops) WITH (m = {LINKS}, ef_construction = {BUILD_WIDTH})"
        )
        await self._writer.execute("VACUUM ANALYZE items")
        self._idle: asyncio.LifoQueue[dict[bool, Any]] = asyncio.LifoQueue()
        self._connections: list[asyncpg.Connection] = [await _connection(data) for _ in range(site.callers)]
        for connection in self._connections:
            self._idle.put_nowait({True: await connection.prepare(_UNSEEN), False: await connection.prepare(_ALL)})

    async def use(self, search: Search) -> None:
        for connection in self._connections:
            await connection.execute(f"SET hnsw.ef_search = {search.width}")

    def prepare(self, question: Question, search: Search) -> tuple[bool, list[Any], frozenset[int]]:
        arguments: list[Any] = [question.vector.tolist(), search.limit(question)]
        if search.filtered:
            arguments.append(list(question.seen))
        return search.filtered, arguments, frozenset(question.seen)

    async def search(self, prepared: tuple[bool, list[Any], frozenset[int]]) -> Found:
        filtered, arguments, seen = prepared
        statements = await self._idle.get()
        try:
            records = await statements[filtered].fetch(*arguments)
        finally:
            self._idle.put_nowait(statements)
        return unseen([record[0] for record in records], [record[1] for record in records], seen)

    async def upsert(self, items: Sequence[NewItem]) -> None:
        await self._writer.executemany(_UPSERT, [(item.row, item.vector.tolist()) for item in items])

    def server_pid(self) -> int:
        return self._server.pid

    async def close(self) -> None:
        for connection in [*getattr(self, "_connections", []), *([self._writer] if hasattr(self, "_writer") else [])]:
            await connection.close()
        if hasattr(self, "_server"):
            self._server.stop()
        if hasattr(self, "_data"):
            shutil.rmtree(self._data)


def _make_cluster(data: Path) -> str | None:
    """An empty database in an empty folder; returns the user whose it then is if not ours. Raises PeerError."""
    user = UNPRIVILEGED if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(data, user)
    command = [str(_binaries() / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=utf8"]
    try:
        done = subprocess.run(command, cwd=data, user=user, capture_output=True, text=True)
    except OSError as error:
        raise PeerError(_refused(str(error), user)) from error
    if done.returncode != 0:
        lines = done.stderr.strip().split("\n")
        raise PeerError(_refused(lines[-1], user))
    return user


def _refused(reason: str, user: str | None) -> str:
    hint = (
        f"; PostgreSQL refuses root, so it runs as {user}, who must be able to enter {tempfile.gettempdir()} and to "
        f"run what is in {_binaries()}"
        if user
        else ""
    )
    return f"initdb failed: {reason}{hint}"


def _binaries() -> Path:
    found = find_spec("pgserver")
    assert found is not None and found.submodule_search_locations, "the packages of a peer are checked before"
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


async def _connection(data: Path) -> Any:
    """A connection; waits while the server still starts."""
    import asyncpg

    for _ in range(100):
        try:
            return await asyncpg.connect(host=str(data), user="postgres", database="postgres")
        except (asyncpg.CannotConnectNowError, ConnectionError, FileNotFoundError):
            await asyncio.sleep(0.1)
    raise PeerError(f"PostgreSQL in {data} takes no connection")
