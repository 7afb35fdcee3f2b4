"""`heliotrope bench memory`: what an item and a user cost, in memory and on disk.

Items: the files of the snapshot that answers are made from, over its float32 vectors, and the texts of the catalogue
beside them; the server maps them all. An item that somebody touched costs more, whoever touches it after: its count and
its number. So every item gets an event first, and that growth is the items'.

Users: the growth of the memory of the server's processes (resident, but for mapped files) and of its data folder over
the number of users that were recorded after that, each of whom is asked for once: when the checkpoints are over, and at
its highest meanwhile. All of them are kept in memory.
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client, Event
from heliotrope_bench.job import Server
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store

ARRAYS = ("vectors.npy", "bias.npy", "index.faiss", "id_hashes.npy", "id_rows.npy")
"""What grows with the items and is read to answer."""
COLUMNS = {
    "items": ",",
    "array_bytes_an_item": ",.0f",
    "over_float32": ".2f",
    "text_bytes_an_item": ",.0f",
    "live_bytes_an_item": ",.0f",
    "users": ",",
    "events_per_user": "",
    "bytes_a_user": ",.0f",
    "peak_bytes_a_user": ",.0f",
    "stored_bytes_a_user": ",.0f",
    "log_bytes_an_event": ",.0f",
}
_CHECKPOINT_S = 7.0
"""A little more than the server lets pass between two checkpoints."""
_SAMPLE_S = 0.05
_FIRST_USER_EVENTS = 500
"""Fewer than a ring holds: what those who touch every item cost is their events, and little else."""


class MemoryOptions(BaseSettings):
    """Measures what items and users cost in memory and on disk."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench memory", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path | None = Field(None, description="snapshot store; default: a synthetic one of --items")
    items: Annotated[int, Field(ge=10, description="items of the synthetic snapshot")] = 100_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of its vectors")] = 64
    users: Annotated[int, Field(ge=1, le=100_000, description="users that are recorded")] = 20_000
    events_per_user: Annotated[int, Field(ge=1)] = 20
    work: Path = Field(Path(".bench"), description="where the synthetic snapshot is kept between runs")
    out: Path = Field(Path("memory.json"), description="raw results")


def run(options: MemoryOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs one server; raises a BenchError when it fails."""
    store = options.snapshots or synthetic_store(options.work / "synthetic", options.items, options.dimension)
    with tempfile.TemporaryDirectory(prefix="heliotrope-memory-") as folder:
        row = measure(options, store, Path(folder))
    write_report(
        options.out, command=["bench", "memory", *arguments], settings=options.model_dump(mode="json"), results=[row]
    )
    print_table(console, "memory and disk", [row], COLUMNS)
    console.print(f"{options.out}")


def measure(options: MemoryOptions, store: Path, folder: Path) -> dict[str, Any]:
    """One row."""
    snapshot = store / (store / "CURRENT").read_text(encoding="utf-8").strip()
    arrays = sum((snapshot / name).stat().st_size for name in ARRAYS if (snapshot / name).is_file())
    data = folder / "data"
    flags = ["--snapshots", str(store), "--data", str(data), "--port", "0", "--shards", "1"]
    with Server(flags, log=folder / "serve.log") as server, Client(server.address, timeout_s=60.0) as client:
        item_ids = [item.item_id for item in client.list_items()]
        client.recommend("nobody", count=10)
        untouched = own_bytes(server.pid)
        record(client, _one_event_each(item_ids))
        client.recommend("nobody", count=10)
        # What is waiting to be written is in memory twice.
        time.sleep(_CHECKPOINT_S)
        before, files = own_bytes(server.pid), _files(data)
        population = Population(item_ids, options.users, seed=0)
        events = list(population.history(options.events_per_user))
        with _highest(server.pid) as sizes:
            record(client, events)
            for user in population.user_ids():
                client.recommend(user, count=1)
            time.sleep(_CHECKPOINT_S)
        after, grown = own_bytes(server.pid), _files(data)
    vectors = (snapshot / "vectors.npy").stat().st_size

    def growth(part: str) -> int:
        return sum(size - files.get(path, 0) for path, size in grown.items() if part in path.parts)

    return {
        "items": len(item_ids),
        "array_bytes_an_item": arrays / len(item_ids),
        "over_float32": arrays / vectors,
        "text_bytes_an_item": (snapshot / "items.arrow").stat().st_size / len(item_ids),
        "live_bytes_an_item": (before - untouched) / len(item_ids),
        "users": options.users,
        "events_per_user": options.events_per_user,
        "bytes_a_user": (after - before) / options.users,
        "peak_bytes_a_user": (max(*sizes, after) - before) / options.users,
        "stored_bytes_a_user": growth("profiles") / options.users,
        "log_bytes_an_event": growth("log") / len(events),
        "server_mib": after / 2**20,
    }


def _one_event_each(item_ids: Sequence[str]) -> list[Event]:
    """An event on every item, of as few users as can be."""
    return [
        Event(f"first-{place // _FIRST_USER_EVENTS}", item_id, "click", event_id=f"first-{place}")
        for place, item_id in enumerate(item_ids)
    ]


@contextmanager
def _highest(pid: int) -> Iterator[list[int]]:
    """A list of what own_bytes said meanwhile."""
    sizes, over = [own_bytes(pid)], threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_S):
            sizes.append(own_bytes(pid))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def own_bytes(pid: int) -> int:
    """Resident memory of a process and its children that is no mapped file."""
    process = psutil.Process(pid)
    sizes = [one.memory_info() for one in [process, *process.children(recursive=True)]]
    return sum(int(size.rss - size.shared) for size in sizes)


def _files(folder: Path) -> dict[Path, int]:
    """Bytes on disk of every file below a folder: a sparse file counts what is written of it."""
    return {path.relative_to(folder): path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()}
