"""`heliotrope repair`: mends damaged profiles without losing an event.

The log is the truth. With a snapshot store the damaged profiles are made anew of it. With backups the whole profile
store is replaced by an older one, and the server replays what came after: so the backup must be of the same generation.
Either way the logs must be whole; a damaged log needs a restore.
"""

import sys
import time
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_server.backup_source import DUMP_SUFFIX, BackupSource
from heliotrope_server.backup_store import BackupStore, storage_errors
from heliotrope_server.catalogue_log import CatalogueChanges
from heliotrope_server.command import one_line_errors
from heliotrope_server.data_source import DataSource
from heliotrope_server.errors import BackupError
from heliotrope_server.layout import lock_data
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.profile_rebuild import Folding, Rebuilt, missing_records, rebuild_profiles
from heliotrope_server.record_log import DAMAGED_SUFFIX, sync_folder
from heliotrope_server.settings import EngineSettings
from heliotrope_server.store_dump import load_store
from heliotrope_server.verify import check_pieces
from heliotrope_server.verify_content import Report, check_content, check_store

_DEFAULTS = EngineSettings()


class RepairOptions(BaseSettings):
    """Mends the damaged profiles of a data folder, whose server is stopped."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_REPAIR_",
        cli_prog_name="heliotrope repair",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    data: Path = Field(description="data folder of a server that is stopped")
    snapshots: str | None = Field(
        None, description="snapshot store that is served: damaged profiles are made anew from the event logs"
    )
    backups: str | None = Field(
        None, description="where backups are kept, a folder or an fsspec URL: damaged profile stores are replaced"
    )
    backup: str | None = Field(None, description="id of the backup; default: the newest")
    ring_size: int = Field(_DEFAULTS.ring_size, description="as in `heliotrope serve`")
    event_window_s: float = Field(_DEFAULTS.event_window_s, description="as in `heliotrope serve`")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.snapshots is None) == (self.backups is None):
            raise ValueError("name either --snapshots or --backups")
        return self


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        options = CliApp.run(RepairOptions, cli_args=arguments)
        if options.snapshots is not None:
            folding = Folding(options.ring_size, time.time() - options.event_window_s)
            print_rebuilt(rebuild(options.data, SnapshotStore(options.snapshots).open(), folding), options.data)
        elif options.backups is not None:
            with storage_errors(options.backups):
                replaced = repair(options.data, BackupStore(options.backups), options.backup)
                for store in replaced:
                    print(f"replaced {store}; what was there is in {store}{DAMAGED_SUFFIX}")
                print(f"{len(replaced)} profile stores were damaged")
    return outcome.code


def print_rebuilt(rebuilt: list[Rebuilt], data: Path) -> None:
    for one in rebuilt:
        dropped = one.event_count is None
        made = "dropped: the logs hold nothing of it" if dropped else f"made anew of the logs, {one.event_count} events"
        print(f"profile {one.user_id!r}: {made}")
    if rebuilt:
        for records in missing_records(data):
            print(f"note: {records} are missing: profiles that were made anew may lack events")
    print(f"{len(rebuilt)} profiles were damaged")


def rebuild(data: Path, snapshot: Snapshot, folding: Folding) -> list[Rebuilt]:
    """Makes damaged profiles of all shards anew; see rebuild_profiles for what it raises."""
    catalogue, changes = LiveCatalogue(snapshot), CatalogueChanges(data / "catalogue")
    changes.catch_up()
    changes.lay_over(catalogue)
    rebuilt: list[Rebuilt] = []
    with lock_data(data):
        layout = DataSource(data).layout
        for index in range(layout.shards):
            with lock_data(layout.shard_folder(data, index)):
                rebuilt += rebuild_profiles(data, index, catalogue, folding)
    return rebuilt


def repair(data: Path, store: BackupStore, backup_id: str | None) -> list[Path]:
    """Returns the profile stores that it replaced. Raises BackupError for a backup that cannot be used."""
    chosen = store.newest() if backup_id is None else backup_id
    manifest = store.manifest(chosen)
    source = DataSource(data)
    layout = source.layout
    if layout.generation != manifest.layout.generation:
        raise BackupError(
            f"backup {chosen} is of generation {manifest.layout.generation} and {data} of {layout.generation}: "
            "its profiles do not go with these logs"
        )
    report = Report()
    backup = BackupSource(store, manifest)
    if check_pieces(store, chosen, manifest, set(), report):
        check_content(backup, report)
    if report.problems:
        raise BackupError(f"backup {chosen} is damaged: {'; '.join(report.problems[:5])}")
    replaced = []
    with lock_data(data):
        for index in range(layout.shards):
            shard = layout.shard_folder(data, index)
            name = (shard / "profiles").relative_to(data).as_posix()
            found = Report()
            check_store(source, name, found)
            if not found.problems:
                continue
            with lock_data(shard):
                fresh, damaged = shard / "profiles.fresh", shard / f"profiles{DAMAGED_SUFFIX}"
                if damaged.exists() or fresh.exists():
                    raise BackupError(f"{shard} holds {damaged.name} or {fresh.name} of an earlier repair: remove them")
                load_store(fresh, backup.pieces(name + DUMP_SUFFIX))
                sync_folder(fresh)
                if (shard / "profiles").exists():
                    (shard / "profiles").rename(damaged)
                fresh.rename(shard / "profiles")
                sync_folder(shard)
            replaced.append(shard / "profiles")
    return replaced


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
