"""`heliotrope build`: catalogue + events + model -> a published snapshot.

    # MovieLens ml-latest-small (movies.csv, ratings.csv): column names are recognised
    heliotrope build --model MODEL --out STORE --catalogue movies.csv --events ratings.csv

    # MovieLens 100k as atomic files with typed headers
    heliotrope build --model MODEL --out STORE --catalogue ml-100k.item --events ml-100k.inter \\
        --columns title=movie_title+release_year,categories=class

    # MovieTweetings: `::` between columns, no header line, so columns are numbered from 0
    heliotrope build --model MODEL --out STORE --catalogue movies.dat --events ratings.dat \\
        --columns item_id=0,title=1,categories=2 --event-columns user_id=0,item_id=1,rating=2,timestamp=3

    # a tab-separated word list whose first column is both id and title; text alone, no events
    heliotrope build --model MODEL --out STORE --catalogue glosses.tsv --columns
    item_id=0,title=0,description=1
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ByteSize, Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.table import Table

from heliotrope_indexer.build import BuildRequest, BuildResult, build
from heliotrope_indexer.catalogue_delta import CatalogueDelta
from heliotrope_indexer.errors import SettingsError
from heliotrope_indexer.gates import GateLimits
from heliotrope_indexer.input_settings import InputSettings, run_command
from heliotrope_indexer.job_folder import job_home, scratch_of
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_indexer.source import Source
from heliotrope_indexer.threads import stand_back


class BuildSettings(InputSettings):
    """Builds a snapshot of a catalogue and publishes it to a store.

    The catalogue and the events may be CSV of any delimiter, JSON Lines or Parquet, plain or gzipped. Rows
    that cannot be used are counted by reason and written to STORE/rejects/VERSION.jsonl with their line
    numbers. A repeated build embeds only new texts; with nothing changed it does nothing. A build whose figures
    are beyond a limit of the gates is not published; the figures are kept in STORE/failed.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_BUILD_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="heliotrope build",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    out: Annotated[str, Field(description="snapshot store: a folder or an fsspec URL such as s3://bucket/store")]
    incremental: Annotated[
        bool, Field(description="take the items of the current snapshot instead of a --catalogue, and what --data adds")
    ] = False
    weights: Annotated[
        Path | None, Field(description="weights folder written by `heliotrope train`, for the same model")
    ] = None
    dimension: Annotated[
        int | None, Field(ge=2, le=1024, description="dimensions of an item vector; default 191, or 127 without events")
    ] = None
    exact_index: Annotated[bool, Field(description="no approximate index, however large the catalogue is")] = False
    seed: Annotated[int, Field(ge=0, description="seed of everything random")] = 0
    max_memory: Annotated[
        ByteSize | None, Field(description="memory that the job may use, such as 4GB: refused at once if it needs more")
    ] = None
    nice: Annotated[int, Field(ge=0, le=19, description="how far the job stands back for others on the machine")] = 0
    gates: Annotated[GateLimits, Field(description="what a build must show before it is published")] = GateLimits()
    publish_anyway: Annotated[
        bool, Field(description="publish although a gate is shut; the manifest says that it was")
    ] = False

    def delta(self) -> CatalogueDelta | None:
        """Changes of a server to absorb; a server's own command says which."""
        return None

    def items(self) -> Source | Snapshot:
        """The catalogue, or the current snapshot for an incremental build."""
        if not self.incremental:
            return super().items()
        if self.catalogue is not None:
            raise SettingsError("--incremental takes the items of the current snapshot: leave out --catalogue")
        return SnapshotStore(self.out).open()


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 the job failed, 2 the settings or an input file are wrong."""
    return run_command("build", BuildSettings, arguments, run_build)


def run_build(settings: BuildSettings) -> None:
    """Builds and reports. Raises an IndexerError or an ExportError."""
    stand_back(settings.nice)
    _report(build(_request(settings), settings.encoder(), Steps(quiet=settings.quiet)))


def _request(settings: BuildSettings) -> BuildRequest:
    whole = settings.dimension or (191 if settings.events else 127)
    text = max(whole // 3, 1)
    return BuildRequest(
        sources=replace(settings.sources(job_home(settings.out) / "embeddings"), delta=settings.delta()),
        store=SnapshotStore(settings.out),
        scratch=scratch_of(settings.out),
        collaborative_dimension=whole - text,
        text_dimension=text,
        exact_index=settings.exact_index,
        weights=settings.weights,
        seed=settings.seed,
        max_memory=settings.max_memory,
        gates=settings.gates,
        publish_anyway=settings.publish_anyway,
        threads=settings.threads,
    )


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
    if result.verdict and result.verdict.overridden:
        print(f"heliotrope: published although {'; '.join(result.verdict.failures)}", file=sys.stderr)
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
    if manifest.data.absorbed:
        facts["absorbed changes"] = f"of the server's catalogue log, up to LSN {manifest.data.absorbed.until_lsn}"
    validation = quality.get("validation")
    if validation:
        facts["validation"] = (
            f"HR@10 {validation['hr@10']}, NDCG@10 {validation['ndcg@10']} over {validation['users']} users"
        )
    gates = quality["gates"]
    if gates["previous"]:
        facts["compared with"] = gates["previous"]
    for name, gate in gates["gates"].items():
        value = "-" if gate["value"] is None else gate["value"]
        note = f"; {gate['note']}" if gate["note"] else ""
        facts[f"gate {name}"] = f"{value}, limit {gate['limit']}{note}{'' if gate['passed'] else '; SHUT'}"
    for number, warning in enumerate(quality["degenerate"]):
        facts["warning" if number == 0 else f"warning {number + 1}"] = warning
    return facts
