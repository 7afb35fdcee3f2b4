"""`heliotrope verify`: reads all of a data folder, or of the backups of one, and says what is damaged and where."""

import sys
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_server.backup_manifest import BackupManifest
from heliotrope_server.backup_source import BackupSource
from heliotrope_server.backup_store import BackupStore, storage_errors
from heliotrope_server.command import one_line_errors
from heliotrope_server.data_source import DataSource
from heliotrope_server.errors import BackupError, DataFolderError
from heliotrope_server.learning.weight_store import WeightStore
from heliotrope_server.verify_content import Report, check_content


class VerifyOptions(BaseSettings):
    """Checks a data folder, also of a running server, or backups. Exit code 0: sound; 1: damaged."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_VERIFY_",
        cli_prog_name="heliotrope verify",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    data: Path | None = Field(None, description="data folder to check")
    backups: str | None = Field(None, description="where backups are kept; the pieces of all of them are checked")
    backup: str | None = Field(None, description="whose content is checked as well; default: the newest")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.data is None) == (self.backups is None):
            raise ValueError("name either --data or --backups")
        return self


def main(arguments: list[str]) -> int:
    damaged = False
    with one_line_errors() as outcome:
        options = CliApp.run(VerifyOptions, cli_args=arguments)
        report = Report()
        if options.backups is not None:
            with storage_errors(options.backups):
                verify_backups(BackupStore(options.backups), options.backup, report)
        elif options.data is not None:
            verify_data(options.data, report)
        print_report(report)
        damaged = bool(report.problems)
    return 1 if damaged else outcome.code


def print_report(report: Report) -> None:
    for problem in report.problems:
        print(f"damaged: {problem}")
    for note in report.notes:
        print(f"note: {note}")
    seen = ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    print(f"{len(report.problems)} problems; checked {seen or 'nothing'}")


def verify_data(data: Path, report: Report) -> None:
    """Checks a data folder. Raises DataFolderError for one that is none."""
    source = DataSource(data)
    check_content(source, report)
    for folder in source.folders("weights"):
        store = WeightStore(data / "weights", Path(folder).name)
        try:
            pointer = store.pointer()
            for version in {*store.versions(), *([pointer.version] if pointer.version else [])}:
                store.load(version)
                report.counts["weights"] += 1
        except (DataFolderError, OSError, ValueError) as error:
            report.problems.append(str(error))


def verify_backups(store: BackupStore, backup_id: str | None, report: Report) -> None:
    """Checks the pieces of all backups, and the content of one (None: the newest). Raises BackupError for none."""
    checked_id = store.newest() if backup_id is None else backup_id
    sound: set[str] = set()
    for each in sorted({checked_id, *store.backup_ids()}, reverse=True):
        try:
            manifest = store.manifest(each)
        except BackupError as error:
            if each == backup_id:
                raise
            report.problems.append(str(error))
            continue
        report.counts["backups"] += 1
        if check_pieces(store, each, manifest, sound, report) and each == checked_id:
            check_content(BackupSource(store, manifest), report)


def check_pieces(store: BackupStore, backup_id: str, manifest: BackupManifest, sound: set[str], report: Report) -> bool:
    """Reads every piece of a backup that is not in `sound`, and adds it there; returns whether all are."""
    before = len(report.problems)
    for file in manifest.files:
        for number, piece in enumerate(file.pieces, 1):
            if piece in sound:
                continue
            try:
                store.read_piece(piece)
            except BackupError as error:
                report.problems.append(f"backup {backup_id}, {file.name}, {number} of {len(file.pieces)}: {error}")
                continue
            sound.add(piece)
            report.counts["pieces"] += 1
    return len(report.problems) == before


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
