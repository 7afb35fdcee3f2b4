"""Which snapshot the shards of a server serve: DATA/SERVED.

CURRENT of the store says what the next server starts with, and a build moves it without asking this one. A shard that
dies and is started again must serve what the other shards do, so it reads this file and not CURRENT.
"""

import os
from pathlib import Path

SERVED_FILE = "SERVED"


class ServedVersion:
    """Written by the supervisor when it starts and by the shard that switches the whole server; read by every shard."""

    def __init__(self, data: Path) -> None:
        self._path = data / SERVED_FILE

    def read(self) -> str:
        return self._path.read_text(encoding="ascii")

    def write(self, version: str) -> None:
        """Versions have one length, so this is one write in place: never half a version, and possible on a full disk.

        It need not be durable: after a power cut it is written anew.
        """
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, version.encode("ascii"), 0)
        finally:
            os.close(descriptor)
