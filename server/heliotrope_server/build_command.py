"""`heliotrope build`: catalogue + events + model, and what a server learned since -> a published snapshot.

    # MovieLens ml-latest-small (movies.csv, ratings.csv): column names are recognised
    heliotrope build --model MODEL --out STORE --catalogue movies.csv --events ratings.csv

    # the same with the items that a server took and lost since
    heliotrope build --model MODEL --out STORE --catalogue movies.csv --events ratings.csv --data DATA

    # what is served now, without a catalogue file
    heliotrope build --model MODEL --out STORE --events live.parquet --incremental --data DATA

More examples are in heliotrope_indexer.command, which is the same command without --data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from heliotrope_indexer.catalogue_delta import CatalogueDelta
from heliotrope_indexer.command import BuildSettings, run_build
from heliotrope_indexer.errors import SettingsError, SourceError
from heliotrope_indexer.input_settings import run_command
from heliotrope_server.catalogue_log import CatalogueChanges
from heliotrope_server.errors import StartError
from heliotrope_server.layout import LAYOUT_FILE, read_layout


class BuildOptions(BuildSettings):
    __doc__ = BuildSettings.__doc__

    data: Annotated[
        Path | None,
        Field(
            description="data folder of a server, which may be running: its live catalogue changes become part of the "
            "snapshot, and the server drops them from its delta when it serves it. The changes win over the catalogue"
        ),
    ] = None

    def delta(self) -> CatalogueDelta | None:
        """The server's changes. Raises SettingsError for a folder that is none, SourceError for a damaged log."""
        return None if self.data is None else read_delta(self.data)


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 the job failed, 2 the settings or an input file are wrong."""
    return run_command("build", BuildOptions, arguments, run_build)


def read_delta(data: Path) -> CatalogueDelta:
    """The changes in a server's data folder up to now, also beside the running server."""
    try:
        if read_layout(data) is None:
            raise SettingsError(f"{data} is no data folder of a server: it has no {LAYOUT_FILE}")
        changes = CatalogueChanges(data / "catalogue")
        changes.catch_up()
    except StartError as error:
        raise SourceError(str(error)) from error
    return changes.delta()
