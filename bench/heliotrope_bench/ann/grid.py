"""`heliotrope bench ann`: recall and rate of our retriever beside the libraries of the field, on the vectors we serve.

Every contender searches the same rows `[x ; b]` by inner product for the same queries, which are made as the server
makes them, in one thread; the truth is exact scoring of the whole catalogue, the bias included. Libraries return row
numbers; ours is the retriever inside the server, with its live view and its re-scoring.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import threadpoolctl
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.ann.contender import K, Point
from heliotrope_bench.ann.frontier import Mark, rate_at
from heliotrope_bench.ann.libraries import LIBRARIES
from heliotrope_bench.ann.measurement import MODES, measure
from heliotrope_bench.ann.ours import OURS, SERVED, asked_rows, our_points, stored_rows
from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.snapshot_job import export_model
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_bench.titles import BIAS_SPREAD, titles, titles_store
from heliotrope_indexer.snapshot import SnapshotStore

RECALLS = (0.90, 0.95, 0.97, 0.98, 0.99, 0.999)
ENGINE = "qdrant"
ENGINE_RECALLS = (0.95, 0.98)
SEED = 7
"""Of the queries; the build measures with others."""
COLUMNS = {
    "mode": "",
    "recall": ".3f",
    "ours": ",.0f",
    "best": ",.0f",
    "of": "",
    "ratio": ".2f",
    "qdrant": ",.0f",
    "over_qdrant": ".1f",
}
POINT_COLUMNS = {"contender": "", "setting": "", "mode": "", "recall": ".4f", "rate": ",.0f", "wall_rate": ",.0f"}


class AnnOptions(BaseSettings):
    """Compares our retriever with FAISS, hnswlib, usearch, voyager, ScaNN, SVS and Qdrant's engine."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench ann", cli_kebab_case=True, cli_hide_none_type=True
    )

    data: Literal["titles", "synthetic"] = Field("titles", description="real texts, or vectors around centres")
    items: Annotated[int, Field(ge=1_000)] | None = Field(None, description="items; default: all the titles")
    dimension: Annotated[int, Field(ge=4)] = Field(127, description="of the vectors; the bias makes one more")
    bias_spread: Annotated[float, Field(ge=0.0)] = Field(BIAS_SPREAD, description="of the titles' drawn biases")
    queries: Annotated[int, Field(ge=1, description="queries of a pass")] = 400
    rounds: Annotated[int, Field(ge=1, description="timed passes of every setting, in turns")] = 5
    contenders: str = Field("all", description=f"of {', '.join(entry.name for entry in LIBRARIES)}, by commas")
    threads: Annotated[int, Field(ge=1)] = Field(os.cpu_count() or 1, description="for building; searches take one")
    work: Path = Field(Path(".bench"), description="where model, embeddings and snapshots are kept between runs")
    out: Path = Field(Path("ann.json"), description="raw results")


def run(options: AnnOptions, arguments: Sequence[str], console: Console) -> None:
    """Measures every setting; raises a BenchError for an unknown contender or a catalogue without an index."""
    names = [entry.name for entry in LIBRARIES]
    chosen = names if options.contenders == "all" else options.contenders.split(",")
    for name in chosen:
        if name not in names:
            raise BenchError(f"there is no contender {name!r}; give some of {', '.join(names)}")
    snapshot = SnapshotStore(_store(options)).open()
    rows, queries = stored_rows(snapshot), asked_rows(snapshot, options.queries, SEED)
    absent: list[dict[str, Any]] = []
    points: list[Point] = [*our_points(snapshot)]
    with tempfile.TemporaryDirectory(prefix="heliotrope-ann-") as folder, threadpoolctl.threadpool_limits(1):
        for entry in LIBRARIES:
            if entry.name not in chosen:
                continue
            if (reason := entry.absence()) is not None:
                absent.append({"contender": entry.name, "absent": reason})
                console.print(f"{entry.name} is left out: {reason}", markup=False)
                continue
            points += entry.points(rows, options.threads, Path(folder))
            console.print(f"{entry.name} is built")
        _one_thread()
        results = measure(points, rows, queries, rounds=options.rounds)
    write_report(
        options.out,
        command=["bench", "ann", *arguments],
        settings={**options.model_dump(mode="json"), "k": K, "snapshot": snapshot.manifest.quality}
        | {"search": snapshot.parameters.model_dump(mode="json")["search"], "rows": list(rows.shape)},
        results=[*results, *absent],
    )
    served = [row for row in results if row["setting"] == SERVED]
    print_table(
        console, f"{len(rows):,} items of {rows.shape[1]} dimensions, as the build chose", served, POINT_COLUMNS
    )
    print_table(console, "queries per second of one core, on the frontiers", verdict(results), COLUMNS)
    console.print(f"{options.out}")


def verdict(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside the best library and beside Qdrant at each recall; absent where nobody reaches it."""
    table = []
    for mode in MODES:
        marks: dict[str, list[Mark]] = {}
        for row in results:
            if row["mode"] == mode:
                marks.setdefault(row["contender"], []).append(Mark(row["recall"], row["rate"]))
        for recall in RECALLS:
            rates = {name: rate for name, own in marks.items() if (rate := rate_at(own, recall)) is not None}
            line: dict[str, Any] = {"mode": mode, "recall": recall, "ours": rates.get(OURS)}
            others = {name: rate for name, rate in rates.items() if name not in (OURS, ENGINE)}
            if others:
                line["of"] = max(others, key=lambda name: others[name])
                line["best"] = others[line["of"]]
                line["ratio"] = rates[OURS] / line["best"] if OURS in rates else None
            if ENGINE in rates and recall in ENGINE_RECALLS:
                line["qdrant"] = rates[ENGINE]
                line["over_qdrant"] = rates[OURS] / rates[ENGINE] if OURS in rates else None
            table.append(line)
    return table


def _store(options: AnnOptions) -> Path:
    if options.data == "synthetic":
        return synthetic_store(
            options.work / "synthetic", options.items or 100_000, options.dimension, threads=options.threads
        )
    count = options.items or len(titles())
    return titles_store(
        options.work, export_model(options.work), count, options.dimension, bias_spread=options.bias_spread
    )


def _one_thread() -> None:
    import faiss

    faiss.omp_set_num_threads(1)
