"""The settings that `tune`, `train` and `build` share, and how a command of this package ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp
from pydantic_settings import SettingsError as CliError

from heliotrope_export import TextEncoder
from heliotrope_export.errors import ExportError
from heliotrope_indexer.errors import IndexerError, SettingsError, SourceError
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.snapshot import Snapshot
from heliotrope_indexer.source import Source


class InputSettings(BaseSettings):
    """What goes in: a catalogue, events, and the model that reads the texts."""

    model: Annotated[Path, Field(description="model folder written by `heliotrope export`")]
    catalogue: Annotated[
        Path | None,
        Field(
            description="the items: id, title, and optionally description, categories, provider, price, "
            "available_from, available_until, attributes"
        ),
    ] = None
    events: Annotated[
        list[Path],
        Field(
            description="events: user_id, item_id, timestamp and any of type, value, rating, event_id; "
            "or the log user_id,item_id,timestamp,label (label 1: click, 0: dislike, other: stars). Repeatable",
        ),
    ] = []
    columns: Annotated[
        str,
        Field(
            description="catalogue columns, ours=theirs: item_id, title, description, categories, provider, price, "
            "available_from, available_until, attributes; `+` joins several, numbers count from 0 in a file without a "
            "header. Example: item_id=movieId,categories=genres,attributes=year+studio"
        ),
    ] = ""
    event_columns: Annotated[
        str,
        Field(
            description="event columns, ours=theirs: user_id, item_id, timestamp, type, value, rating, label, event_id"
        ),
    ] = ""
    delimiter: Annotated[str | None, Field(description="delimiter of the catalogue; guessed when not given")] = None
    event_delimiter: Annotated[str | None, Field(description="delimiter of the events; guessed when not given")] = None
    variant: Annotated[
        str | None, Field(description="model variant: fp32, fp16 or int8; best available by default")
    ] = None
    positive_rating: Annotated[
        float | None, Field(gt=0, description="stars that count as liked; default 4/5 of the highest rating")
    ] = None
    cache: Annotated[Path | None, Field(description="embedding cache; by default a folder beside the output")] = None
    threads: Annotated[int, Field(ge=1, le=256, description="threads of the numeric libraries")] = 2
    quiet: Annotated[bool, Field(description="no progress bars")] = False

    def sources(self, default_cache: Path) -> JobSources:
        """Where the input is. Raises SettingsError for a column mapping that is none, or without a catalogue."""
        event_columns = _mapping(self.event_columns)
        return JobSources(
            catalogue=self.items(),
            events=tuple(Source(path, event_columns, self.event_delimiter) for path in self.events),
            cache=self.cache or default_cache,
            positive_rating=self.positive_rating,
        )

    def items(self) -> Source | Snapshot:
        """Where the items are."""
        if self.catalogue is None:
            raise SettingsError("--catalogue is missing")
        return Source(self.catalogue, _mapping(self.columns), self.delimiter)

    def encoder(self) -> TextEncoder:
        """Opens the model. Raises an ExportError."""
        return TextEncoder.open(self.model, variant=self.variant, threads=self.threads)


_Settings = TypeVar("_Settings", bound=InputSettings)


def run_command(
    name: str, settings_type: type[_Settings], arguments: list[str], job: Callable[[_Settings], None]
) -> int:
    """Runs a job with settings from the command line; 0: done, 1: the job failed, 2: settings or an input are wrong."""
    try:
        settings = CliApp.run(settings_type, cli_args=arguments)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + ".".join(str(part) for part in first["loc"]).replace("_", "-")
        return _failed(name, f"{option}: {first['msg']}", 2)
    except CliError as error:
        return _failed(name, str(error), 2)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        job(settings)
    except (SettingsError, SourceError) as error:
        return _failed(name, str(error), 2)
    except (IndexerError, ExportError) as error:
        return _failed(name, str(error), 1)
    except OSError as error:
        return _failed(name, _of_the_disk(error), 1)
    return 0


def _of_the_disk(error: OSError) -> str:
    if error.errno is None:
        # NumPy says no more than how much was taken.
        return f"a file could not be written whole ({error}): is the disk full?"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _mapping(text: str) -> dict[str, str]:
    mapping = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours or not theirs:
            raise SettingsError(f"{pair!r} is not a column mapping; write ours=theirs")
        mapping[ours] = theirs
    return mapping


def _failed(name: str, message: str, code: int) -> int:
    print(f"heliotrope {name}: {' '.join(message.split())}", file=sys.stderr)
    return code
