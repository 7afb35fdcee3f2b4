"""`heliotrope bench start`: how long from the start of the server's process to its first answer, and its memory then.

Each round starts `heliotrope serve` on an empty data folder, or on one that holds the events of users, and asks it for
recommendations until the first answer is there. The operating system has the snapshot's files in memory from the second
round on; the first round is shown apart.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope_bench.job import Server
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.memory import own_bytes
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store

COLUMNS = {
    "items": ",",
    "users": ",",
    "shards": "",
    "first_s": ".2f",
    "again_s": ".2f",
    "server_mib": ",.0f",
}


class StartOptions(BaseSettings):
    """Measures the time from the start of a server to its first answer."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench start", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path | None = Field(None, description="snapshot store; default: a synthetic one of --items")
    items: Annotated[int, Field(ge=10, description="items of the synthetic snapshot")] = 1_000_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of its vectors")] = 64
    users: Annotated[int, Field(ge=0, description="users whose events lie in the data folder")] = 0
    events_per_user: Annotated[int, Field(ge=1)] = 20
    shards: Annotated[int, Field(ge=1, le=64)] = 1
    rounds: Annotated[int, Field(ge=1)] = 3
    work: Path = Field(Path(".bench"), description="where the synthetic snapshot is kept between runs")
    out: Path = Field(Path("start.json"), description="raw results")


def run(options: StartOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all rounds; raises a BenchError when the server fails."""
    store = options.snapshots or synthetic_store(options.work / "synthetic", options.items, options.dimension)
    with tempfile.TemporaryDirectory(prefix="heliotrope-start-") as folder:
        row = measure(options, store, Path(folder))
    write_report(
        options.out, command=["bench", "start", *arguments], settings=options.model_dump(mode="json"), results=[row]
    )
    print_table(console, "heliotrope serve, from the start of the process to the first answer", [row], COLUMNS)
    console.print(f"{options.out}")


def measure(options: StartOptions, store: Path, folder: Path) -> dict[str, Any]:
    """One row; the times of all rounds are in it."""
    flags = ["--snapshots", str(store), "--data", str(folder / "data"), "--port", "0", "--shards", str(options.shards)]
    item_count, asked = 0, "nobody"
    if options.users:
        with Server(flags, log=folder / "serve.log") as server, Client(server.address, timeout_s=60.0) as client:
            population = Population([item.item_id for item in client.list_items()], options.users, seed=0)
            record(client, list(population.history(options.events_per_user)))
            asked = population.user_ids()[0]
    seconds, memory = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        with Server(flags, log=folder / "serve.log") as server, Client(server.address, timeout_s=60.0) as client:
            client.recommend(asked, count=10)
            seconds.append(time.perf_counter() - started)
            memory.append(own_bytes(server.pid) / 2**20)
            item_count = client.serving_status().shards[0].item_count
    return {
        "items": item_count,
        "users": options.users,
        "shards": options.shards,
        "first_s": seconds[0],
        "again_s": statistics.median(seconds[1:] or seconds),
        "server_mib": statistics.median(memory),
        "rounds_s": seconds,
    }
