"""`heliotrope build`: catalogue + events + model -> a published snapshot.

    # MovieLens ml-latest-small (movies.csv, ratings.csv): column names are recognised
    heliotrope build --model MODEL --out STORE --catalogue movies.csv --events ratings.csv --tune

    # MovieLens 100k as atomic files with typed headers
    heliotrope build --model MODEL --out STORE --catalogue ml-100k.item --events ml-100k.inter \\
        --columns title=movie_title+release_year,categories=class

    # MovieTweetings: `::` between columns, no header line, so columns are numbered from 0
    heliotrope build --model MODEL --out STORE --catalogue movies.dat --events ratings.dat --tune \\
        --columns item_id=0,title=1,categories=2 --event-columns user_id=0,item_id=1,rating=2,timestamp=3

    # a tab-separated word list whose first column is both id and title; text alone, no events
    heliotrope build --model MODEL --out STORE --catalogue glosses.tsv --columns
    item_id=0,title=0,description=1
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from pydantic_settings import SettingsError as CliError
from rich.console import Console
from rich.table import Table

from heliotrope_export import TextEncoder
from heliotrope_export.errors import ExportError
from heliotrope_indexer.build import BuildRequest, BuildResult, build
from heliotrope_indexer.errors import IndexerError, SettingsError, SourceError
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source


class BuildSettings(BaseSettings):
    """Builds a snapshot of a catalogue and publishes it to a store.

    The catalogue and the events may be CSV of any delimiter, JSON Lines or Parquet, plain or gzipped. Rows
    that cannot be used are counted by reason and written to STORE/rejects/VERSION.jsonl with their line
    numbers. A repeated build embeds only new texts; with nothing changed it does nothing.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_BUILD_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="heliotrope build",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    model: Annotated[Path, Field(description="model folder written by `heliotrope export`")]
    catalogue: Annotated[Path, Field(description="the items: id, title, and optionally description, categories")]
    events: Annotated[
        list[Path],
        Field(
            description="events: user_id, item_id, timestamp and any of type, value, rating, event_id; "
            "or the log user_id,item_id,timestamp,label (label 1: click, 0: dislike, other: stars). Repeatable",
        ),
    ] = []
    out: Annotated[str, Field(description="snapshot store: a folder or an fsspec URL such as s3://bucket/store")]
    columns: Annotated[
        str,
        Field(
            description="catalogue columns, ours=theirs: item_id, title, description, categories; `+` joins several, "
            "numbers count from 0 in a file without a header. Example: item_id=movieId,title=title,categories=genres"
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
    dimension: Annotated[
        int | None, Field(ge=2, le=1024, description="dimensions of an item vector; default 191, or 127 without events")
    ] = None
    tune: Annotated[bool, Field(description="choose the parameters on held-out events (seconds to a minute)")] = False
    positive_rating: Annotated[
        float | None, Field(gt=0, description="stars that count as liked in tuning; default 4/5 of the highest rating")
    ] = None
    exact_index: Annotated[bool, Field(description="no approximate index, however large the catalogue is")] = False
    cache: Annotated[
        Path | None, Field(description="embedding cache; default OUT/embeddings, or ~/.cache/heliotrope for a URL")
    ] = None
    seed: Annotated[int, Field(ge=0, description="seed of everything random")] = 0
    threads: Annotated[int, Field(ge=1, le=256, description="threads of the numeric libraries")] = 2
    quiet: Annotated[bool, Field(description="no progress bars")] = False


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 the job failed, 2 the settings or an input file are wrong."""
    try:
        settings = CliApp.run(BuildSettings, cli_args=arguments)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        return _failed(f"{name}: {first['msg']}", 2)
    except CliError as error:
        return _failed(str(error), 2)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        encoder = TextEncoder.open(settings.model, variant=settings.variant, threads=settings.threads)
        result = build(_request(settings), encoder, Steps(quiet=settings.quiet))
    except (SettingsError, SourceError) as error:
        return _failed(str(error), 2)
    except (IndexerError, ExportError) as error:
        return _failed(str(error), 1)
    _report(result)
    return 0


def _request(settings: BuildSettings) -> BuildRequest:
    remote = "://" in settings.out and not settings.out.startswith("file://")
    home = Path.home() / ".cache" / "heliotrope" if remote else Path(settings.out.removeprefix("file://"))
    cache = settings.cache or home / "embeddings"
    catalogue = Source(settings.catalogue, _mapping(settings.columns), settings.delimiter)
    event_columns = _mapping(settings.event_columns)
    events = tuple(Source(path, event_columns, settings.event_delimiter) for path in settings.events)
    whole = settings.dimension or (191 if events else 127)
    text = max(whole // 3, 1)
    return BuildRequest(
        catalogue=catalogue,
        events=events,
        store=SnapshotStore(settings.out),
        scratch=home / ".building",
        cache=cache,
        collaborative_dimension=whole - text,
        text_dimension=text,
        tune=settings.tune,
        exact_index=settings.exact_index,
        positive_rating=settings.positive_rating,
        seed=settings.seed,
        threads=settings.threads,
    )


def _mapping(text: str) -> dict[str, str]:
    mapping = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours or not theirs:
            raise SettingsError(f"{pair!r} is not a column mapping; write ours=theirs")
        mapping[ours] = theirs
    return mapping


def _report(result: BuildResult) -> None:
    if result.reused:
        print(f"heliotrope: nothing changed, {result.version} is current")
        return
    manifest = result.manifest
    console = Console()
    table = Table(title=f"snapshot {result.version}", show_header=False)
    for name, value in _facts(result).items():
        table.add_row(name, str(value))
    console.print(table)
    if manifest.data.rejects:
        rejects = Table(title=f"rejected rows: {result.rejects}")
        rejects.add_column("reason")
        rejects.add_column("rows", justify="right")
        for reason, count in manifest.data.rejects.items():
            rejects.add_row(reason, str(count))
        console.print(rejects)
    print(f"heliotrope: published {result.version}")


def _facts(result: BuildResult) -> dict[str, Any]:
    manifest, quality = result.manifest, result.manifest.quality
    facts: dict[str, Any] = {
        "items": f"{manifest.n_items} of {manifest.data.catalogue_rows} rows",
        "events": f"{manifest.data.event_rows} rows, until {manifest.data.events_until_time or '-'}",
        "vectors": f"{manifest.dimension} dimensions from {manifest.feature_dimension}",
        "newly embedded texts": result.newly_embedded,
        "index": f"{quality['index']}, recall@10 {quality['recall_at_10']}, recall@100 {quality['recall_at_100']}",
    }
    validation = quality.get("validation")
    if validation:
        facts["validation"] = (
            f"HR@10 {validation['hr@10']}, NDCG@10 {validation['ndcg@10']} over {validation['users']} users"
            f"{', tuned in ' + str(validation['trials']) + ' trials' if validation['tuned'] else ''}"
        )
    return facts


def _failed(message: str, code: int) -> int:
    print(f"heliotrope build: {' '.join(message.split())}", file=sys.stderr)
    return code
