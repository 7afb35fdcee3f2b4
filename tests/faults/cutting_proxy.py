"""Stands between the shards of a server: passes on what they say to one of them, holds it up, or cuts it off."""

import asyncio
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any


class CuttingProxy:
    """Takes the place of a shard's Unix socket. Whoever connects from then on is passed on to the shard.

    Connections that were there before are not touched: restart the other shards to lead them through here.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._real = socket.with_name(f"{socket.name}.real")
        self._flowing = asyncio.Event()
        self._ending = asyncio.Event()
        self._refusing = False
        self._bytes_left: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "CuttingProxy":
        os.link(self._socket, self._real)
        self._thread.start()
        self._loop = self._started.result(timeout=30)
        self._socket.with_suffix(".proxy").rename(self._socket)  # so that there is a socket at any time
        self.mend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._real.rename(self._socket)
        self.cut()
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def cut(self) -> None:
        """Ends every connection, and lets none come about."""

        async def act() -> None:
            self._refusing = True
            self._flowing.set()
            self._abort()

        self._do(act())

    def hold(self) -> None:
        """Keeps connections open and passes nothing on."""

        async def act() -> None:
            self._flowing.clear()

        self._do(act())

    def cut_after(self, size: int) -> None:
        """Ends every connection once, in mid-message, when so many more bytes have passed."""

        async def act() -> None:
            self._bytes_left = size

        self._do(act())

    def mend(self) -> None:
        """Passes everything on again."""

        async def act() -> None:
            self._refusing = False
            self._flowing.set()

        self._do(act())

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._connected, path=str(self._socket.with_suffix(".proxy")))
        self._started.set_result(asyncio.get_running_loop())
        await self._ending.wait()
        server.close()
        while self._writers:
            await asyncio.sleep(0)

    def _do(self, act: Any) -> None:
        waiting: Future[Any] = asyncio.run_coroutine_threadsafe(act, self._loop)
        waiting.result(timeout=30)

    def _abort(self) -> None:
        self._bytes_left = None
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_unix_connection(self._real)
        self._writers |= {writer, there_writer}
        try:
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        finally:
            self._writers -= {writer, there_writer}
            for each in (writer, there_writer):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if self._bytes_left is not None:
                    data, self._bytes_left = data[: self._bytes_left], self._bytes_left - len(data)
                writer.write(data)
                await writer.drain()
                if self._bytes_left is not None and self._bytes_left <= 0:
                    self._abort()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
