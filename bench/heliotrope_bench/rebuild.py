"""`heliotrope bench rebuild`: time, CPU and memory of the rebuild job, stage by stage.

The catalogue is of real texts (see `titles`), its events are drawn by Zipf's law. `heliotrope build` runs twice into
new stores: once with no embedding known, and once with the embeddings of the first run.
"""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.load_data import Population
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.snapshot_job import export_model
from heliotrope_bench.titles import titles
from heliotrope_bench.watched_job import Stage, watch_job

COLUMNS = {
    "run": "",
    "stage": "",
    "seconds": ",.2f",
    "cpu_s": ",.2f",
    "peak_mib": ",.0f",
    "texts_per_s": ",.0f",
}
EMBEDDING = "embed texts"
WHOLE = "whole job"


class RebuildOptions(BaseSettings):
    """Measures the rebuild job on a catalogue of real texts, without and with known embeddings."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench rebuild", cli_kebab_case=True, cli_hide_none_type=True
    )

    items: Annotated[int, Field(ge=10, description="items of the catalogue")] = 60_000
    users: Annotated[int, Field(ge=0, description="users with events; 0: the catalogue alone")] = 5_000
    events_per_user: Annotated[int, Field(ge=1)] = 20
    threads: Annotated[int, Field(ge=1, description="of the job")] = 2
    model: Path | None = Field(None, description="model folder; exported into WORK when not given")
    work: Path = Field(Path(".bench"), description="where the model is kept between runs")
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    out: Path = Field(Path("rebuild.json"), description="raw results")


def run(options: RebuildOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs the job twice; raises a BenchError when it fails."""
    texts = titles(options.items, options.data)
    model = options.model or export_model(options.work)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="heliotrope-rebuild-") as name:
        folder = Path(name)
        sources = ["--model", str(model), "--cache", str(folder / "embeddings"), "--threads", str(options.threads)]
        sources += write_sources(folder, texts, options)
        for turn in ("cold", "embeddings known"):
            console.print(f"heliotrope build, {turn} ...", style="dim")
            stages = watch_job(["build", *sources, "--out", str(folder / turn.partition(" ")[0])])
            rows += rows_of(turn, stages, len(set(texts)))
    settings = {**options.model_dump(mode="json"), "distinct_texts": len(set(texts))}
    write_report(options.out, command=["bench", "rebuild", *arguments], settings=settings, results=rows)
    print_table(console, f"heliotrope build, {options.items:,} items", rows, COLUMNS)
    console.print(f"{options.out}")


def write_sources(folder: Path, texts: Sequence[str], options: RebuildOptions) -> list[str]:
    """Writes catalogue and events; returns the flags that name them."""
    item_ids = [f"i{row}" for row in range(len(texts))]
    with (folder / "catalogue.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *zip(item_ids, texts, strict=True)])
    flags = ["--catalogue", str(folder / "catalogue.csv")]
    if not options.users:
        return flags
    with (folder / "events.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "item_id", "type", "timestamp", "event_id"))
        for event in Population(item_ids, options.users, seed=0).history(options.events_per_user):
            writer.writerow((event.user_id, event.item_id, event.type, event.time, event.event_id))
    return [*flags, "--events", str(folder / "events.csv")]


def rows_of(turn: str, stages: Sequence[Stage], texts: int) -> list[dict[str, Any]]:
    """A row for each stage, and one for the whole job; `texts` are the distinct ones."""
    rows = [_row(turn, stage, texts if stage.name == EMBEDDING else None) for stage in stages]
    whole = Stage(
        WHOLE,
        sum(stage.seconds for stage in stages),
        sum(stage.cpu_s for stage in stages),
        max(stage.peak_mib for stage in stages),
    )
    return [*rows, _row(turn, whole, texts)]


def _row(turn: str, stage: Stage, texts: int | None) -> dict[str, Any]:
    return {
        "run": turn,
        "stage": stage.name,
        "seconds": stage.seconds,
        "cpu_s": stage.cpu_s,
        "peak_mib": stage.peak_mib,
        "texts_per_s": None if texts is None else texts / stage.seconds,
    }
