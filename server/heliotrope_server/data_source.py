"""A server's data folder as backups and checks read it: consistently, also while the server runs.

Log segments only grow at their end and a checkpoint never runs ahead of the log. So a shard's state is whole when its
profile store is read first, in one transaction of LMDB, and its log after that.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack

from heliotrope_server.errors import DataFolderError
from heliotrope_server.layout import Layout, read_layout
from heliotrope_server.store_values import META_KEY, decode_meta
from heliotrope_server.value_checksum import payload_of

_READ_BYTES = 1 << 20


class StoreEntry(NamedTuple):
    """One value of a profile store; `database` is its name within the LMDB file."""

    database: str
    key: bytes
    value: bytes


class CheckpointState(NamedTuple):
    """What a store says of itself: the LSN of its last checkpoint, that of one that is being written, if later, and the
    snapshots that folded sums may need.
    """

    lsn: int = 0
    newest_lsn: int = 0
    folded_versions: tuple[str, ...] = ()


class DataSource:
    """Reads a data folder. Names are relative to it, with slashes."""

    def __init__(self, data: Path) -> None:
        """Raises DataFolderError for a folder that no server has used."""
        layout = read_layout(data)
        if layout is None:
            raise DataFolderError(f"{data} is no data folder of a server: it has no layout.json")
        self.folder = data
        self.layout: Layout = layout

    def names(self, folder: str) -> list[str]:
        """The files directly in a folder but for hidden ones, sorted; none for a folder that does not exist."""
        try:
            entries = [entry for entry in (self.folder / folder).iterdir() if entry.is_file()]
        except FileNotFoundError:
            return []
        return sorted(f"{folder}/{entry.name}" for entry in entries if not entry.name.startswith("."))

    def folders(self, folder: str) -> list[str]:
        """The folders directly in a folder, sorted."""
        try:
            return sorted(f"{folder}/{entry.name}" for entry in (self.folder / folder).iterdir() if entry.is_dir())
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def store_entries(self, folder: str) -> Iterator[StoreEntry]:
        """Everything in a profile store as of one checkpoint, by database and key.

        Raises DataFolderError for a store that is damaged; what came before may be wrong as well.
        """
        path = self.folder / folder
        if not (path / "data.mdb").exists():
            raise DataFolderError(f"{path} holds no profile store")
        command = [sys.executable, "-m", "heliotrope_server.store_reader", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
            assert reader.stdout is not None and reader.stderr is not None
            try:
                for database, key, value in msgpack.Unpacker(reader.stdout, read_size=_READ_BYTES, max_buffer_size=0):
                    yield StoreEntry(database, key, value)
                message = reader.stderr.read().decode(errors="replace").strip().splitlines()
            except BaseException:  # also when nobody wants the rest
                reader.kill()
                raise
        if reader.returncode:
            said = message[0] if message else f"its reader ended with {reader.returncode}"
            raise DataFolderError(f"the profile store in {path} is damaged: {said}")


def check_value(entry: StoreEntry, folder: str) -> None:
    """Raises DataFolderError for a value whose checksum does not match; those of earlier versions have none."""
    try:
        payload_of(entry.key, entry.value)
    except ValueError as error:
        raise DataFolderError(
            f"{folder}, {entry.database} {entry.key!r}: {error}; run `heliotrope repair` (docs/backup.md)"
        ) from error


def checkpoint_state(entry: StoreEntry) -> CheckpointState | None:
    """The state of the checkpoint, if this is the entry that holds it."""
    if (entry.database, entry.key) != ("meta", META_KEY):
        return None
    meta = decode_meta(entry.value)
    lsn = meta["lsn"]
    return CheckpointState(lsn, max(lsn, meta.get("shared_lsn", 0)), tuple(meta["folded_versions"]))
