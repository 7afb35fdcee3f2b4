"""`heliotrope bench lifecycle`: what users see of a server while everything happens to it that happens to servers.

A generator asks for recommendations at a steady rate. Meanwhile items stream in with known vectors, the catalogue is
built anew on the same machine, the server swaps to it, and rolls back. Latency in each phase is beside that of the
first, steady one. What was acknowledged is looked for in later answers, and lists of users are held against exact
scoring.
"""

import asyncio
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import AsyncClient, Client, RetryPolicy
from heliotrope_bench.errors import JobFailedError
from heliotrope_bench.exact_answers import ExactAnswers
from heliotrope_bench.job import Server, environment, pinned, run_job
from heliotrope_bench.lifecycle_watch import COUNT, Watch
from heliotrope_bench.load import cpu_seconds, free_cpus, parse_cpus
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.newcomers import Newcomers
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.snapshot_job import embedding_cache, export_model
from heliotrope_bench.steady_load import Samples, SteadyLoad
from heliotrope_bench.titles import titles

STEADY, STREAMING, STREAMED = "steady", "items stream in", "after the items"
REBUILD, SWAP, SWAPPED = "full rebuild", "swap", "after the swap"
ROLLBACK, ROLLED_BACK = "rollback", "after the rollback"
SETTLE_S = 3.0
"""Of a swap, after the call has returned: profiles are derived anew as they are next read."""
TRICKLE_PER_S = 5.0
"""Newcomers that go on coming through the rebuild and the swaps."""
LONGEST_S = 600.0
"""Newcomers are kept ready for a run of so long."""
BUCKET_S = 0.25
COLUMNS = {
    "phase": "",
    "seconds": ",.1f",
    "p50_ms": ",.2f",
    "p99_ms": ",.2f",
    "p99_of_steady": ".2f",
    "max_ms": ",.1f",
    "failed": "d",
    "items_per_s": ",.0f",
    "looks": "d",
    "incomplete": "d",
    "recall@10": ".4f",
    "server_cpu": ".0%",
}

Positive = Annotated[float, Field(gt=0)]


class LifecycleOptions(BaseSettings):
    """Follows a server of its own through new items, a rebuild, a swap and a rollback."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench lifecycle", cli_kebab_case=True, cli_hide_none_type=True
    )

    items: Annotated[int, Field(ge=10)] = Field(60_000, description="items of the first snapshot")
    dimension: Annotated[int, Field(ge=2, le=1_024)] = Field(64, description="of the item vectors")
    rate: Positive = Field(300.0, description="Recommend a second; about a third of what one core answers")
    items_per_s: Positive = Field(1_000.0, description="items that stream in")
    stream_s: Positive = Field(20.0, description="seconds for which they do")
    steady_s: Positive = Field(10.0, description="seconds of each steady phase")
    users: Annotated[int, Field(ge=1)] = Field(500, description="synthetic users")
    events_per_user: Annotated[int, Field(ge=1)] = Field(8, description="events of each user before the load")
    server_cpus: str = Field("0", description="cores of the server, such as 0 or 0,1; empty: any")
    build_cpus: str = Field("", description="cores of the rebuild; empty: all that the server does not have")
    build_threads: Annotated[int, Field(ge=1)] = Field(1, description="threads of the rebuild")
    build_nice: Annotated[int, Field(ge=0, le=19)] = Field(19, description="how far the rebuild stands back")
    model: Path | None = Field(None, description="model folder; exported into WORK when not given")
    work: Path = Field(
        Path(".bench"), description="where model, embeddings and the first snapshot are kept between runs"
    )
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    seed: int = Field(0, description="seed of users, events and arrivals")
    out: Path = Field(Path("lifecycle.json"), description="raw results")


def run(options: LifecycleOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all phases; raises a BenchError when the server or the rebuild fails."""
    model = options.model or export_model(options.work)
    coming = int(options.items_per_s * options.stream_s + TRICKLE_PER_S * LONGEST_S)
    texts = titles(options.items + coming, options.data)
    console.print(f"{coming:,} vectors of new items ...", style="dim")
    newcomers = Newcomers.embedded(texts[options.items :], model, embedding_cache(options.work))
    first = _first_store(options, model, texts[: options.items])
    cpus = parse_cpus(options.server_cpus)
    with tempfile.TemporaryDirectory(prefix="heliotrope-lifecycle-") as name:
        folder = Path(name)
        store = Path(shutil.copytree(first, folder / "snapshots"))
        flags = ["--snapshots", str(store), "--data", str(folder / "data"), "--port", "0", "--shards", "1"]
        with Server(flags, log=folder / "serve.log", cpus=cpus) as server:
            rows = _Lifecycle(options, server, store, folder / "data", model, newcomers, console).run()
    write_report(
        options.out,
        command=["bench", "lifecycle", *arguments],
        settings=options.model_dump(mode="json"),
        results=rows,
    )
    print_table(console, f"{options.items:,} items, one shard, {options.rate:g} Recommend a second", rows, COLUMNS)
    console.print(f"{options.out}")


def _first_store(options: LifecycleOptions, model: Path, texts: Sequence[str]) -> Path:
    """A store with one snapshot of these texts as `heliotrope build` makes it; made on first use."""
    store = options.work / "lifecycle" / f"{options.items}x{options.dimension}"
    if (store / "CURRENT").is_file():
        return store
    with tempfile.TemporaryDirectory(prefix="heliotrope-lifecycle-") as name:
        catalogue = Path(name, "catalogue.csv")
        with catalogue.open("w", encoding="utf-8", newline="") as file:
            rows = ((f"i{row}", text) for row, text in enumerate(texts))
            csv.writer(file).writerows([("item_id", "title"), *rows])
        run_job(["build", *_build_flags(options, model, store), "--catalogue", str(catalogue)])
    return store


def _build_flags(options: LifecycleOptions, model: Path, store: Path) -> list[str]:
    return [
        *("--model", str(model), "--cache", str(embedding_cache(options.work)), "--out", str(store)),
        *("--dimension", str(options.dimension)),
    ]


@dataclass(frozen=True)
class _Phase:
    """What went on from `start_s` to `end_s`, on time.monotonic(); `more` are figures of what was done."""

    name: str
    start_s: float
    end_s: float
    server_cpu: float
    more: dict[str, Any] = field(default_factory=dict)


class _Lifecycle:
    def __init__(
        self,
        options: LifecycleOptions,
        server: Server,
        store: Path,
        data: Path,
        model: Path,
        newcomers: Newcomers,
        console: Console,
    ) -> None:
        self._options, self._server, self._store, self._data = options, server, store, data
        self._model, self._newcomers, self._console = model, newcomers, console
        self._phases: list[_Phase] = []

    def run(self) -> list[dict[str, Any]]:
        options = self._options
        server_cpus = parse_cpus(options.server_cpus)
        population = Population([f"i{row}" for row in range(options.items)], options.users, options.seed)
        history = list(population.history(options.events_per_user))
        with Client(self._server.address, timeout_s=60.0) as client:
            record(client, history)
        calls = population.recommend_calls(COUNT)
        load = SteadyLoad(
            self._server.address, calls, options.rate, COUNT, cpus=free_cpus(server_cpus), seed=options.seed
        )
        with load:
            watch = asyncio.run(self._live(population.user_ids(), history))
            samples = load.stop()
        self._console.print("exact answers ...", style="dim")
        watch.judge(ExactAnswers(self._store, self._newcomers))
        rows = [self._row(phase, samples, watch) for phase in self._phases]
        for row in rows:
            row["p99_of_steady"] = row["p99_ms"] / rows[0]["p99_ms"]
        return rows

    async def _live(self, users: Sequence[str], history: Sequence[Any]) -> Watch:
        """All phases, in order."""
        options = self._options
        # Without retries: a call that fails once has failed.
        async with AsyncClient(self._server.address, timeout_s=60.0, retry=RetryPolicy(max_attempts=1)) as client:
            watch = Watch(client, self._newcomers, users, history, options.seed)
            looking = asyncio.create_task(watch.look_for_ever())
            # Not measured: connections, and what the server does once.
            await asyncio.sleep(min(2.0, options.steady_s))
            await self._phase(STEADY)
            await self._phase(STREAMING, lambda: self._stream(watch), 0.0)
            coming = asyncio.create_task(watch.add(TRICKLE_PER_S, LONGEST_S))
            await self._phase(STREAMED)
            await self._phase(REBUILD, self._rebuild, 0.0)
            await self._phase(SWAP, lambda: self._activate(client), SETTLE_S)
            await self._phase(SWAPPED)
            await self._phase(ROLLBACK, lambda: self._roll_back(client), SETTLE_S)
            await self._phase(ROLLED_BACK)
            for task in (coming, looking):
                if task.done():
                    task.result()
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        return watch

    async def _phase(
        self,
        name: str,
        work: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Does the work, if there is any, then waits so long (None: as in a steady phase)."""
        self._console.print(f"{name} ...", style="dim")
        start, used = time.monotonic(), cpu_seconds(self._server.pid)
        more = {} if work is None else await work()
        await asyncio.sleep(self._options.steady_s if seconds is None else seconds)
        end, now = time.monotonic(), cpu_seconds(self._server.pid)
        assert used is not None and now is not None, "the server is ours"
        self._phases.append(_Phase(name, start, end, (now - used) / (end - start), more))

    async def _stream(self, watch: Watch) -> dict[str, Any]:
        reached = await watch.add(self._options.items_per_s, self._options.stream_s)
        return {"items_per_s": reached, "new_items": watch.acknowledged}

    async def _rebuild(self) -> dict[str, Any]:
        """The job that a user runs, beside the server, on the cores that it may use."""
        options = self._options
        command = [
            *(sys.executable, "-m", "heliotrope", "build", *_build_flags(options, self._model, self._store)),
            *("--incremental", "--data", str(self._data), "--quiet"),
            *("--threads", str(options.build_threads), "--nice", str(options.build_nice)),
        ]
        cpus = parse_cpus(options.build_cpus) or free_cpus(parse_cpus(options.server_cpus))
        with pinned(cpus):
            job = await asyncio.create_subprocess_exec(
                *command,
                env=environment(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        said, _ = await job.communicate()
        if job.returncode != 0:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise JobFailedError(f"`heliotrope build` ended with exit code {job.returncode}: {last}")
        return {}

    async def _activate(self, client: AsyncClient) -> dict[str, Any]:
        start = time.monotonic()
        answer = await client.activate_snapshot()
        return {"call_s": time.monotonic() - start, "map_error": answer.folded_migration_error}

    async def _roll_back(self, client: AsyncClient) -> dict[str, Any]:
        start = time.monotonic()
        await client.roll_back_snapshot()
        return {"call_s": time.monotonic() - start}

    def _row(self, phase: _Phase, samples: Samples, watch: Watch) -> dict[str, Any]:
        part = samples.between(phase.start_s, phase.end_s)
        looks = [look for look in watch.looks if phase.start_s <= look.at_s < phase.end_s]
        failures = [text for at_s, text in watch.failures if phase.start_s <= at_s < phase.end_s]
        lacking = [look.lacks for look in looks if look.lacks]
        lists = [look for look in looks if look.right is not None]
        places = sum(look.places for look in lists)
        seconds = phase.end_s - phase.start_s
        row: dict[str, Any] = {
            "phase": phase.name,
            "start_s": phase.start_s - self._phases[0].start_s,
            "seconds": seconds,
            "rate_per_s": len(part.due_s) / seconds,
            **_latency(part),
            "lag_p99_ms": float(np.percentile(part.lag_s, 99)) * 1e3,
            "failed": int(part.failed.sum()) + len(failures),
            "failures": failures[:10],
            "codes_of_the_run": samples.codes,
            "looks": len(looks),
            "incomplete": len(lacking),
            "lacking": lacking[:10],
            "recall@10": sum(look.right or 0 for look in lists) / places if places else None,
            "server_cpu": phase.server_cpu,
            **phase.more,
        }
        edges = np.arange(phase.start_s, phase.end_s, BUCKET_S)
        row["buckets"] = [
            {"at_s": float(edge - self._phases[0].start_s), **_latency(bucket), "failed": int(bucket.failed.sum())}
            for edge in edges
            if len((bucket := samples.between(edge, min(edge + BUCKET_S, phase.end_s))).due_s)
        ]
        return row


def _latency(samples: Samples) -> dict[str, float]:
    """Failed calls count with the time that they took."""
    p50, p99, most = np.percentile(samples.latency_s, (50, 99, 100)) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(most)}
