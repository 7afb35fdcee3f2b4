"""The Unix socket on which a shard listens for the other shards."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECK_INTERVAL_S = 0.5

logger = logging.getLogger(__name__)


class PeerSocket:
    """A gRPC server on a socket that is made again when it is gone.

    It lies among temporary files, which something may clear away after days. Connections outlive that; a shard that
    restarts would find nobody.
    """

    def __init__(self, path: Path, make_server: Callable[[], Any]) -> None:
        """`make_server` returns a gRPC server with the services of the other shards, not yet started."""
        self._path = path
        self._make_server = make_server
        self._server: Any = None

    async def open(self) -> None:
        """Listens, in a folder that only this user can enter. Raises OSError or RuntimeError where that can't be."""
        folder = self._path.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o077:
            raise PermissionError(errno.EPERM, "others may enter this folder", str(folder))
        self._server = self._make_server()
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    async def keep_for_ever(self) -> None:
        """Listens anew whenever the socket has been removed."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if not self._path.is_socket():
                logger.warning("the socket %s was removed and is made again", self._path)
                # First: a server that ends removes whatever has the name of its socket.
                await self._server.stop(CHECK_INTERVAL_S)
                try:
                    await self.open()
                except (OSError, RuntimeError) as error:
                    logger.error("the other shards cannot reach this one: %s", error)

    async def close(self, grace_s: float) -> None:
        """Lets running calls finish for `grace_s`."""
        await self._server.stop(grace_s)
