"""Where backups are kept: a local folder or an fsspec URL.

    STORE/pieces/ab/abcdef...   a piece of a file, named after its SHA-256; shared by all backups
    STORE/backups/<id>.json     the manifest of one backup, written last
    STORE/LOCK                  held by the job that writes, in a local folder

A crash leaves pieces that no manifest names; the next backup uses them or `prune` removes them.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from heliotrope_server.backup_manifest import ID_PATTERN, BackupManifest
from heliotrope_server.errors import BackupError
from heliotrope_server.record_log import sync_folder

ASIDE_SUFFIX = ".partial"
SETTLED_TOGETHER = 256
"""Pieces that wait for the disk together: one after the other each would wait for the journal of the file system."""


class BackupStore:
    """Reads and writes a store. OSErrors of the storage become BackupErrors in the commands (`storage_errors`)."""

    def __init__(self, path: str) -> None:
        """Nothing is touched yet. Raises BackupError for a URL of a kind that is not known or not installed."""
        self._fs: Any
        try:
            self._fs, self._root = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError) as error:
            raise BackupError(f"{path}: {error}") from error
        self.path = path
        self._aside: list[Path] = []
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second job from writing to the same local folder. Behind a URL, see to that yourself."""
        if not self._local:
            yield
            return
        Path(self._root).mkdir(parents=True, exist_ok=True)
        with Path(self._root, "LOCK").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BackupError(f"another job is writing to {self.path}") from error
            yield

    def backup_ids(self) -> list[str]:
        """All backups, newest first."""
        names = [name.rpartition("/")[2] for name in self._found("backups")]
        return sorted((name[:-5] for name in names if ID_PATTERN.fullmatch(name.removesuffix(".json"))), reverse=True)

    def newest(self) -> str:
        """Id of the newest backup. Raises BackupError if there is none."""
        ids = self.backup_ids()
        if not ids:
            raise BackupError(f"{self.path} holds no backup")
        return ids[0]

    def manifest(self, backup_id: str) -> BackupManifest:
        """Raises BackupError for one that does not exist, or is damaged."""
        if not ID_PATTERN.fullmatch(backup_id):
            raise BackupError(f"{backup_id[:60]!r} is not a backup: <date>T<time>Z-<12 hex digits>")
        try:
            data = bytes(self._fs.cat_file(f"{self._root}/backups/{backup_id}.json"))
        except FileNotFoundError as error:
            raise BackupError(f"{self.path} holds no backup {backup_id}; it holds {self.backup_ids()[:5]}") from error
        return BackupManifest.decode(backup_id, data)

    def pieces(self) -> dict[str, int]:
        """Names and sizes of all pieces."""
        found = self._found("pieces")
        return {name.rpartition("/")[2]: size for name, size in found.items() if not name.endswith(ASIDE_SUFFIX)}

    def read_piece(self, name: str) -> bytes:
        """Raises BackupError for a piece that is missing or damaged."""
        try:
            data = bytes(self._fs.cat_file(self._piece(name)))
        except FileNotFoundError as error:
            raise BackupError(f"piece {name} is missing from {self.path}") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise BackupError(f"piece {name} of {self.path} is damaged: its hash does not match its name")
        return data

    def write_piece(self, name: str, data: bytes) -> None:
        """Adds a piece; in a local folder it is durable, and visible, at the latest when a backup is published."""
        path = self._piece(name)
        if not self._local:
            self._fs.pipe_file(path, data)
            return
        aside = Path(path + ASIDE_SUFFIX)
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        self._aside.append(aside)
        if len(self._aside) == SETTLED_TOGETHER:
            self._settle()

    def publish(self, manifest: BackupManifest) -> str:
        """Makes a backup of pieces that are here; returns its id."""
        backup_id, data = manifest.encode()
        path = f"{self._root}/backups/{backup_id}.json"
        if not self._local:
            self._fs.pipe_file(path, data)
            return backup_id
        self._settle()
        aside = Path(path + ASIDE_SUFFIX)
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        self._aside.append(aside)
        self._settle()
        return backup_id

    def prune(self, keep: int) -> tuple[list[str], int]:
        """Removes all backups but the newest `keep`, then the pieces that none of those names; returns what went.

        Raises BackupError, with no piece removed, if a manifest that stays cannot be read.
        """
        ids = self.backup_ids()
        needed: set[str] = set()
        for backup_id in ids[:keep]:
            needed |= self.manifest(backup_id).piece_names
        for backup_id in ids[keep:]:
            self._fs.rm_file(f"{self._root}/backups/{backup_id}.json")
        # Also what a job that was broken off left aside.
        unneeded = [path for path in self._found("pieces") if path.rpartition("/")[2] not in needed]
        unneeded += [path for path in self._found("backups") if path.endswith(ASIDE_SUFFIX)]
        for path in unneeded:
            self._fs.rm_file(path)
        return ids[keep:], len(unneeded)

    def _piece(self, name: str) -> str:
        return f"{self._root}/pieces/{name[:2]}/{name}"

    def _found(self, folder: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            details = self._fs.find(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        return {name: int(detail["size"]) for name, detail in details.items()}

    def _settle(self) -> None:
        """Makes what was written aside durable, then visible."""
        for aside in self._aside:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        for aside in self._aside:
            aside.rename(aside.with_name(aside.name.removesuffix(ASIDE_SUFFIX)))
        for folder in {aside.parent for aside in self._aside}:
            sync_folder(folder)
        self._aside = []


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turns what the storage behind `path` refuses into a BackupError."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"{path}: {error}") from error
