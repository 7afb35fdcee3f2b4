"""`heliotrope backup`: copies what is new in a data folder, also of a running server.

Reads in this order: of each shard its profile store, then its log, which is never behind; then the catalogue log, so
that it knows every item that an event names. A sealed log segment never changes and is not read again.
"""

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_server.backup_manifest import BackupFile, BackupManifest, ShardState
from heliotrope_server.backup_source import DUMP_SUFFIX
from heliotrope_server.backup_store import BackupStore, storage_errors
from heliotrope_server.command import one_line_errors
from heliotrope_server.data_source import CheckpointState, DataSource, StoreEntry, check_value, checkpoint_state
from heliotrope_server.errors import BackupError
from heliotrope_server.layout import LAYOUT_FILE, read_layout
from heliotrope_server.record_log import DAMAGED_SUFFIX, frames_of
from heliotrope_server.store_dump import dump_pieces

PIECE_BYTES = 4 << 20  # of a file that is not a profile store


class BackupOptions(BaseSettings):
    """Backs up the data folder of a server, which may be running. Snapshots are not part of it."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="HELIOTROPE_BACKUP_", cli_prog_name="heliotrope backup", cli_kebab_case=True
    )

    data: Path = Field(description="data folder of a server")
    backups: str = Field(description="where backups are kept: a folder or an fsspec URL; one data folder each")
    keep: Annotated[int, Field(ge=1)] | None = Field(
        None, description="remove all backups but the newest so many, when this one is done"
    )


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        options = CliApp.run(BackupOptions, cli_args=arguments)
        with storage_errors(options.backups):
            store = BackupStore(options.backups)
            with store.locked():
                taken = take_backup(options.data, store)
                print(taken.summary)
                if options.keep is not None:
                    removed, pieces = store.prune(options.keep)
                    print(f"removed {len(removed)} older backups and {pieces} pieces")
    return outcome.code


class TakenBackup(NamedTuple):
    """A finished backup: how large it is, and what of it was not in the store before."""

    backup_id: str
    manifest: BackupManifest
    new_pieces: int
    new_bytes: int

    @property
    def summary(self) -> str:
        size = sum(file.size for file in self.manifest.files)
        lsns = ", ".join(str(shard.last_lsn) for shard in self.manifest.shards)
        return (
            f"backup {self.backup_id}: {len(self.manifest.files)} files, {size:,} bytes, of which {self.new_bytes:,} "
            f"in {self.new_pieces} pieces are new; up to LSN {lsns}"
        )


def take_backup(data: Path, store: BackupStore) -> TakenBackup:
    """Backs up a data folder. Raises DataFolderError, LogCorruptError or BackupError; then there is no new backup."""
    source = DataSource(data)
    layout = source.layout
    job = _Job(source, store)
    shards: list[ShardState] = []
    snapshots: set[str] = set()
    for index in range(layout.shards):
        shard = f"{layout.generation}/shard-{index:03d}"
        checkpoint = job.copy_profiles(f"{shard}/profiles")
        shards.append(ShardState(checkpoint_lsn=checkpoint.lsn, last_lsn=job.copy_log(f"{shard}/log")))
        snapshots.update(checkpoint.folded_versions)
        job.copy_files(source.names(f"{shard}/impressions"))
    for generation, last_lsns in layout.ancestors.items():
        for index in last_lsns:
            job.copy_log(f"{generation}/shard-{index:03d}/log")
            job.copy_files(source.names(f"{generation}/shard-{index:03d}/impressions"))
    for folder in source.folders("weights"):
        # The pointer first: what it points to stays for many versions more.
        job.copy_files(sorted(source.names(folder), key=lambda name: not name.endswith(".json")))
    catalogue_lsn = job.copy_log("catalogue")
    if read_layout(data) != layout:
        raise BackupError(f"{data / LAYOUT_FILE} changed during the backup: the shards were cut anew; back up again")
    manifest = BackupManifest(
        time=_time_after_the_last(store),
        server_version=importlib.metadata.version("heliotrope"),
        layout=layout,
        shards=tuple(shards),
        catalogue_lsn=catalogue_lsn,
        snapshot_versions=tuple(sorted(snapshots)),
        files=tuple(job.files),
    )
    return TakenBackup(store.publish(manifest), manifest, job.new_pieces, job.new_bytes)


def _time_after_the_last(store: BackupStore) -> datetime:
    """Now, or a moment after the newest backup: ids keep their order when the clock jumps back."""
    ids = store.backup_ids()
    if not ids:
        return datetime.now(UTC)
    return max(datetime.now(UTC), store.manifest(ids[0]).time + timedelta(microseconds=1))


class _Job:
    """Copies files into a store piece by piece, and lists them."""

    def __init__(self, source: DataSource, store: BackupStore) -> None:
        self.files: list[BackupFile] = []
        self.new_pieces = 0
        self.new_bytes = 0
        self._source = source
        self._store = store
        self._known = store.pieces()
        self._sealed = _sealed_segments(store)

    def copy_profiles(self, folder: str) -> CheckpointState:
        """Copies a profile store; returns how far it had come."""
        state = CheckpointState()

        def watched() -> Iterator[StoreEntry]:
            nonlocal state
            for entry in self._source.store_entries(folder):
                check_value(entry, folder)
                state = checkpoint_state(entry) or state
                yield entry

        self._add(folder + DUMP_SUFFIX, dump_pieces(watched()))
        return state

    def copy_log(self, folder: str) -> int:
        """Copies the intact frames of a log; returns its last LSN. Raises LogCorruptError."""
        names = self._source.names(folder)
        segments = [name for name in names if name.endswith(".log")]
        last_lsn = 0
        for name in segments:
            last = name == segments[-1]
            before = self._sealed.get(name)
            if not last and before is not None and self._still_there(before):
                self.files.append(before)
                continue
            data = self._source.read(name)
            last_lsn, intact = int(Path(name).stem) - 1, 0
            for frame, end in frames_of(data, self._source.folder / name, torn_tail=last):
                last_lsn, intact = frame.first_lsn + len(frame.records) - 1, end
            if intact:
                self._add(name, _cut(data[:intact]))
        self.copy_files([name for name in names if name.endswith(DAMAGED_SUFFIX)])
        return last_lsn

    def copy_files(self, names: Iterable[str]) -> None:
        """Copies files as they are, but for those that the server has removed in the meantime."""
        for name in names:
            with suppress(FileNotFoundError):
                self._add(name, _cut(self._source.read(name)))

    def _add(self, name: str, pieces: Iterable[bytes]) -> None:
        size, names = 0, []
        for piece in pieces:
            piece_name = hashlib.sha256(piece).hexdigest()
            if self._known.get(piece_name) != len(piece):  # one of another size was not written to its end
                self._store.write_piece(piece_name, piece)
                self._known[piece_name] = len(piece)
                self.new_pieces += 1
                self.new_bytes += len(piece)
            names.append(piece_name)
            size += len(piece)
        self.files.append(BackupFile(name=name, size=size, pieces=tuple(names)))

    def _still_there(self, file: BackupFile) -> bool:
        return file.size == self._source.size(file.name) and self._known.keys() >= set(file.pieces)


def _sealed_segments(store: BackupStore) -> dict[str, BackupFile]:
    """The log segments of the last backup that had one behind them, so that nothing was written to them any more."""
    ids = store.backup_ids()
    files = store.manifest(ids[0]).files if ids else ()
    segments = sorted((file for file in files if file.name.endswith(".log")), key=lambda file: file.name)
    followed = [one for one, behind in pairwise(segments) if Path(one.name).parent == Path(behind.name).parent]
    return {file.name: file for file in followed}


def _cut(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
