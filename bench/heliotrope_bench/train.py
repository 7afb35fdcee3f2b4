"""`heliotrope bench train`: how long `heliotrope train` takes, and what it reaches in that time.

The job runs as a user runs it, in a process of its own: files in, weights out. Where more events are asked for than the
data set has, its users are copied: each copy keeps a random 9 of 10 events and the order of their times. So the
catalogue and the lengths of histories are real, and quality with copies says nothing of other data.
"""

import csv
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.dataset import NAMES, Dataset, load
from heliotrope_bench.errors import BenchError
from heliotrope_bench.job import run_job
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.snapshot_job import embedding_cache, export_model, write_catalogue

KEPT = 0.9
"""Share of a user's events that a copy keeps."""
COLUMNS = {
    "events": ",",
    "threads": "",
    "job_s": ".0f",
    "train_s": ".0f",
    "epochs": "",
    "epoch_s": ".1f",
    "peak_mib": ",.0f",
    "hr@10": ".4f",
    "ndcg@10": ".4f",
}


class TrainOptions(BaseSettings):
    """Measures the training job on a number of events."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_prog_name="heliotrope bench train",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    dataset: str = Field("movielens-small", description=f"one of {', '.join(NAMES)}")
    events: Annotated[int, Field(ge=1, le=100_000_000, description="users are copied until there are this many")] = (
        1_000_000
    )
    threads: Annotated[int, Field(ge=1, description="of the job")] = 2
    epochs: Annotated[int | None, Field(ge=1, description="at most; default: those of `heliotrope train`")] = None
    settings: Path | None = Field(None, description="settings file; default: those of `heliotrope train`")
    model: Path | None = Field(None, description="model folder; exported into WORK when not given")
    work: Path = Field(Path(".bench"), description="where the model and the embeddings are kept between runs")
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    out: Path = Field(Path("train.json"), description="raw results")


def run(options: TrainOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs the job once; raises BenchError."""
    if options.dataset not in NAMES:
        raise BenchError(f"there is no data set {options.dataset!r}; there are {', '.join(NAMES)}")
    data = load(options.dataset, options.data)
    model = options.model or export_model(options.work)
    with tempfile.TemporaryDirectory(prefix="heliotrope-train-") as folder:
        row = measure(data, options, model, Path(folder))
    write_report(
        options.out,
        command=["bench", "train", *arguments],
        settings={**options.model_dump(mode="json"), "data": data.facts()},
        results=[row],
    )
    print_table(console, f"heliotrope train on {options.dataset}", [row], COLUMNS)
    console.print(f"{options.out}")


def measure(data: Dataset, options: TrainOptions, model: Path, folder: Path) -> dict[str, Any]:
    """Writes the files, runs the job and reads its own account of it."""
    catalogue, events, weights = folder / "catalogue.csv", folder / "events.csv", folder / "weights"
    write_catalogue(data, catalogue)
    count = write_copies(data, options.events, events)
    arguments = [
        *("train", "--catalogue", str(catalogue), "--events", str(events), "--model", str(model)),
        *("--cache", str(embedding_cache(options.work)), "--out", str(weights), "--threads", str(options.threads)),
        *("--positive-rating", str(min(data.positive_from, 10.0))),
    ]
    if options.settings is not None:
        arguments += ["--settings", str(options.settings)]
    if options.epochs is not None:
        arguments += ["--epochs", str(options.epochs)]
    started = time.perf_counter()
    run_job(arguments)
    seconds = time.perf_counter() - started
    training = json.loads((weights / "weights.json").read_text(encoding="utf-8"))["training"]
    with (weights / "curves.csv").open(encoding="utf-8", newline="") as file:
        ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    lengths = np.diff([0.0, *ends])
    return {
        "events": count,
        "threads": options.threads,
        "job_s": seconds,
        "train_s": training["seconds"],
        "epochs": len(ends),
        "epoch_s": float(np.median(lengths)),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024.0,
        "hr@10": training.get("validation", {}).get("hr@10"),
        "ndcg@10": training.get("validation", {}).get("ndcg@10"),
    }


def write_copies(data: Dataset, count: int, path: Path) -> int:
    """Writes at least `count` events, or all of the data set's where that is more; returns how many."""
    generator = np.random.default_rng(0)
    everything = np.arange(len(data))
    written = copy = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "type", "value", "timestamp"])
        while copy == 0 or written < count:
            kept = everything if copy == 0 else everything[generator.random(len(data)) < KEPT]
            for position in kept.tolist():
                user, item = data.user_ids[data.user[position]], data.items[data.item[position]].item_id
                seconds = int(data.time[position])
                writer.writerow([f"{user}-{copy}", item, data.kind(position), data.value[position], seconds])
            written += len(kept)
            copy += 1
    return written
