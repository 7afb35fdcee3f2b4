"""`heliotrope restore`: makes a data folder of a backup.

The restored state is a generation of its own that descends from the one that was backed up. So a version token of the
old server is honoured up to the last record of the backup, and is an error behind it, also when new records come to
bear the same numbers.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_server.backup_manifest import BackupManifest
from heliotrope_server.backup_source import DUMP_SUFFIX, BackupSource
from heliotrope_server.backup_store import BackupStore, storage_errors
from heliotrope_server.command import one_line_errors
from heliotrope_server.errors import BackupError
from heliotrope_server.layout import Layout, lock_data, new_generation, write_layout
from heliotrope_server.record_log import sync_folder
from heliotrope_server.store_dump import load_store
from heliotrope_server.verify import check_pieces
from heliotrope_server.verify_content import Report, check_content


class RestoreOptions(BaseSettings):
    """Restores a backup into an empty folder, after checking all of it."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_RESTORE_",
        cli_prog_name="heliotrope restore",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    backups: str = Field(description="where backups are kept: a folder or an fsspec URL")
    data: Path = Field(description="data folder to make; it must be empty or not exist")
    backup: str | None = Field(None, description="id of the backup; default: the newest")


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        options = CliApp.run(RestoreOptions, cli_args=arguments)
        with storage_errors(options.backups):
            print(restore(BackupStore(options.backups), options.backup, options.data))
    return outcome.code


def restore(store: BackupStore, backup_id: str | None, data: Path) -> str:
    """Restores a backup (None: the newest) and says so. Raises BackupError, with nothing written for a damaged one."""
    chosen = store.newest() if backup_id is None else backup_id
    manifest = store.manifest(chosen)
    source = BackupSource(store, manifest)
    report = Report()
    if check_pieces(store, chosen, manifest, set(), report):
        check_content(source, report)
    if report.problems:
        raise BackupError(f"backup {chosen} is damaged and was not restored: {'; '.join(report.problems[:5])}")
    data.mkdir(parents=True, exist_ok=True)
    found = sorted({entry.name for entry in data.iterdir()} - _MAY_EXIST)
    if found:
        raise BackupError(f"{data} is not empty: it holds {', '.join(found[:5])}; restore into an empty folder")
    layout = _restored(manifest)
    with lock_data(data):
        for file in manifest.files:
            target = data / _renamed(file.name, manifest.layout.generation, layout.generation)
            if file.name.endswith(DUMP_SUFFIX):
                load_store(target.with_suffix(""), source.pieces(file.name))
            else:
                _write_file(target, source.pieces(file.name))
        for folder, _, _ in os.walk(data):
            sync_folder(Path(folder))
        # Last: without it the folder is no data folder, and a server refuses to start on what is there.
        write_layout(data, layout)
    lsns = ", ".join(str(shard.last_lsn) for shard in manifest.shards)
    return f"restored {chosen} to {data}: generation {layout.generation}, up to LSN {lsns}"


_MAY_EXIST = {"LOCK", "lost+found"}


def _restored(manifest: BackupManifest) -> Layout:
    old = manifest.layout
    reached = {index: shard.last_lsn for index, shard in enumerate(manifest.shards)}
    return old.model_copy(
        update={"generation": new_generation(), "ancestors": {**old.ancestors, old.generation: reached}}
    )


def _renamed(name: str, old_generation: str, new_generation: str) -> str:
    first, *rest = name.split("/")
    if not rest or any(part in ("", "..") for part in (first, *rest)):
        raise BackupError(f"the backup names a file {name!r}, which is in no folder of a data folder")
    return "/".join([new_generation if first == old_generation else first, *rest])


def _write_file(path: Path, pieces: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
