"""`heliotrope repair`: replaces damaged profile stores by those of a backup, without losing an event.

The log is the truth: the server replays what came after the older store. So the backup must be of the same generation,
and the logs must be whole; a damaged log needs a restore.
"""

import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_server.backup_source import DUMP_SUFFIX, BackupSource
from heliotrope_server.backup_store import BackupStore, storage_errors
from heliotrope_server.command import one_line_errors
from heliotrope_server.data_source import DataSource
from heliotrope_server.errors import BackupError
from heliotrope_server.layout import lock_data
from heliotrope_server.record_log import DAMAGED_SUFFIX, sync_folder
from heliotrope_server.store_dump import load_store
from heliotrope_server.verify import check_pieces
from heliotrope_server.verify_content import Report, check_content, check_store


class RepairOptions(BaseSettings):
    """Replaces the damaged profile stores of a data folder, whose server is stopped."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_REPAIR_",
        cli_prog_name="heliotrope repair",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    data: Path = Field(description="data folder of a server that is stopped")
    backups: str = Field(description="where its backups are kept: a folder or an fsspec URL")
    backup: str | None = Field(None, description="id of the backup; default: the newest")


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        options = CliApp.run(RepairOptions, cli_args=arguments)
        with storage_errors(options.backups):
            replaced = repair(options.data, BackupStore(options.backups), options.backup)
            for store in replaced:
                print(f"replaced {store}; what was there is in {store}{DAMAGED_SUFFIX}")
            print(f"{len(replaced)} profile stores were damaged")
    return outcome.code


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
