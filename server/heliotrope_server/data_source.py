"""A server's data folder as backups and checks read it: consistently, also while the server runs.

Log segments only grow at their end and a checkpoint never runs ahead of the log. So a shard's state is whole when its
profile store is read first, in one transaction of LMDB, and its log after that.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgpack

from heliotrope_server.errors import DataFolderError
from heliotrope_server.layout import Layout, read_layout

MAX_DATABASES = 16


class StoreEntry(NamedTuple):
    """One value of a profile store; `database` is its name within the LMDB file."""

    database: str
    key: bytes
    value: bytes


class CheckpointState(NamedTuple):
    """What a store's last checkpoint says of itself; (0, ()) before the first."""

    lsn: int = 0
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

        LMDB has no checksums; raises DataFolderError where its tree contradicts itself.
        """
        path = self.folder / folder
        if not (path / "data.mdb").exists():
            raise DataFolderError(f"{path} holds no profile store")
        try:
            with closing(lmdb.open(str(path), readonly=True, max_dbs=MAX_DATABASES)) as environment:
                environment.reader_check()  # a reader that was killed would keep its pages from being used again
                with environment.begin() as transaction:
                    for name in [bytes(key) for key, _ in transaction.cursor()]:
                        database = environment.open_db(name, txn=transaction, create=False)
                        yield from _entries(transaction, database, name.decode(), path)
        except lmdb.Error as error:
            raise DataFolderError(f"the profile store in {path} is damaged: {error}") from error


def checkpoint_state(entry: StoreEntry) -> CheckpointState | None:
    """The state of the checkpoint, if this is the entry that holds it."""
    if (entry.database, entry.key) != ("meta", b"checkpoint"):
        return None
    meta = msgpack.unpackb(entry.value)
    return CheckpointState(meta["lsn"], tuple(meta["folded_versions"]))


def _entries(transaction: lmdb.Transaction, database: Any, name: str, path: Path) -> Iterator[StoreEntry]:
    count, before = 0, b""
    for key, value in ((bytes(key), bytes(value)) for key, value in transaction.cursor(database)):
        if key <= before or transaction.get(key, db=database) != value:
            raise DataFolderError(f"the profile store in {path} is damaged: {name} has {key!r} out of its place")
        yield StoreEntry(name, key, value)
        count, before = count + 1, key
    wanted = transaction.stat(database)["entries"]
    if count != wanted:
        raise DataFolderError(f"the profile store in {path} is damaged: {name} has {count} of {wanted} entries")
