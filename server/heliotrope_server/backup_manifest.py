"""What a backup is: files of a data folder, each as a list of pieces that are named after their SHA-256."""

import hashlib
import json
import re
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from heliotrope_server.errors import BackupError
from heliotrope_server.layout import Layout

FORMAT_VERSION = 1
ID_PATTERN = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{12}")


class BackupFile(BaseModel):
    """A file, by its name in the data folder; a profile store is one file, `<folder>.dump` (see store_dump)."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    pieces: tuple[str, ...]


class ShardState(BaseModel):
    """How far one shard had come: `checkpoint_lsn` is that of its profiles, `last_lsn` that of its log."""

    model_config = ConfigDict(frozen=True)

    checkpoint_lsn: int
    last_lsn: int


class BackupManifest(BaseModel):
    """One backup. `snapshot_versions` are those that folded sums need, so keep them in the snapshot store."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    time: datetime
    server_version: str
    layout: Layout
    shards: tuple[ShardState, ...]
    catalogue_lsn: int
    snapshot_versions: tuple[str, ...]
    files: tuple[BackupFile, ...]

    def encode(self) -> tuple[str, bytes]:
        """The id, which holds the hash, and the bytes."""
        data = self.model_dump_json().encode()
        return f"{self.time.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{hashlib.sha256(data).hexdigest()[:12]}", data

    @classmethod
    def decode(cls, backup_id: str, data: bytes) -> "BackupManifest":
        """Raises BackupError for a manifest that is damaged or of another format."""
        if hashlib.sha256(data).hexdigest()[:12] != backup_id.rpartition("-")[2]:
            raise BackupError(f"the manifest of backup {backup_id} is damaged: its hash does not match its name")
        try:
            found = json.loads(data)["format_version"]
            if found != FORMAT_VERSION:
                raise BackupError(f"backup {backup_id} has format version {found}; this program reads {FORMAT_VERSION}")
            return cls.model_validate_json(data)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise BackupError(f"the manifest of backup {backup_id} cannot be read: {error}") from error

    @property
    def piece_names(self) -> set[str]:
        return {piece for file in self.files for piece in file.pieces}
