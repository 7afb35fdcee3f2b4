"""A backup as checks and restores read it: as the data folder that it was taken of."""

from collections.abc import Iterator

from heliotrope_server.backup_manifest import BackupManifest
from heliotrope_server.backup_store import BackupStore
from heliotrope_server.data_source import StoreEntry
from heliotrope_server.errors import BackupError
from heliotrope_server.store_dump import piece_entries

DUMP_SUFFIX = ".dump"


class BackupSource:
    """Reads one backup; every piece is checked against its hash. Names are those of `DataSource`."""

    def __init__(self, store: BackupStore, manifest: BackupManifest) -> None:
        self.manifest = manifest
        self.layout = manifest.layout
        self._store = store
        self._files = {file.name: file for file in manifest.files}

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self._files if name.rpartition("/")[0] == folder)

    def folders(self, folder: str) -> list[str]:
        depth = folder.count("/") + 1
        inside = [name.split("/") for name in self._files if name.startswith(f"{folder}/")]
        return sorted({"/".join(parts[: depth + 1]) for parts in inside if len(parts) > depth + 1})

    def read(self, name: str) -> bytes:
        """Raises BackupError for a piece that is missing or damaged."""
        data = b"".join(self.pieces(name))
        if len(data) != self._files[name].size:
            raise BackupError(f"{name} has {len(data)} bytes; the manifest says {self._files[name].size}")
        return data

    def pieces(self, name: str) -> Iterator[bytes]:
        """The pieces of a file, in order."""
        for piece in self._files[name].pieces:
            yield self._store.read_piece(piece)

    def store_entries(self, folder: str) -> Iterator[StoreEntry]:
        """Everything in a profile store, by database and key."""
        if folder + DUMP_SUFFIX not in self._files:
            raise BackupError(f"the backup holds no profile store {folder}")
        for piece in self.pieces(folder + DUMP_SUFFIX):
            yield from piece_entries(piece)
