"""`heliotrope bench shards`: what several shards answer beside one, asked by a client that knows who owns whom.

Each shard has a core of its own. The generator needs one too: on a machine where the shards take all of them it runs
beside them and takes from what they could have done, so the rate by second of the servers' own CPU time is shown as
well: it is what would be left of it on a larger machine.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope.shard_map import ShardMap
from heliotrope_bench.errors import BenchError
from heliotrope_bench.generator import Load, generate, ready
from heliotrope_bench.job import Server
from heliotrope_bench.load import cpu_seconds, median_row, summarise
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.report import print_table, write_report

COLUMNS = {
    "case": "",
    "rate_per_s": ",.0f",
    "of_one_shard": ".2f",
    "rate_per_cpu_s": ",.0f",
    "of_one_shard_by_cpu": ".2f",
    "p50_ms": ",.2f",
    "p99_ms": ",.2f",
    "server_cpu": ".0%",
    "generator_cpu": ".0%",
    "errors": "d",
}
EVENTS_PER_USER = 20


class ShardsOptions(BaseSettings):
    """Measures Recommend on one shard and on several, in turns."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench shards", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path = Field(description="snapshot store")
    shards: Annotated[int, Field(ge=2, le=64)] = Field(2, description="shards beside the one")
    count: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="items per recommendation")
    users: Annotated[int, Field(ge=1)] = Field(2_000, description="synthetic users")
    concurrency: Annotated[int, Field(ge=1)] = Field(64, description="callers of the closed loop, for each shard")
    duration_s: Annotated[float, Field(gt=0)] = Field(8.0, description="seconds that each case is measured")
    warm_up_s: Annotated[float, Field(ge=0)] = Field(2.0, description="seconds before, not measured")
    rounds: Annotated[int, Field(ge=1)] = Field(3, description="turns of the two")
    out: Path = Field(Path("shards.json"), description="raw results")


def run(options: ShardsOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all turns; raises a BenchError when a server fails or there are too few cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) < options.shards:
        raise BenchError(f"{options.shards} shards need as many cores; this process has {len(cores)}")
    free = tuple(cores[options.shards :])
    if not free:
        console.print("the generator has no core of its own: compare the rates by CPU second", style="dim")
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heliotrope-shards-")))
        cases = {}
        for shards in (1, options.shards):
            flags = ["--snapshots", str(options.snapshots), "--data", str(folder / f"data-{shards}"), "--port", "0"]
            server = Server([*flags, "--shards", str(shards)], log=folder / f"{shards}.log", cpus=cores[:shards])
            cases[shards] = _prepared(options, stack.enter_context(server), shards, free or None)
        pool.submit(ready).result()
        measured: dict[int, list[dict[str, Any]]] = {shards: [] for shards in cases}
        for _ in range(options.rounds):
            for shards, (pid, load) in cases.items():
                measured[shards].append(measure_load(f"{shards} shard(s)", pid, load, pool))
    rows = {shards: median_row(each) for shards, each in measured.items()}
    several, one = rows[options.shards], rows[1]
    several["of_one_shard"] = several["rate_per_s"] / one["rate_per_s"]
    # A CPU second of the servers answers so much less than with one shard; with a core each they have so many of them.
    several["of_one_shard_by_cpu"] = options.shards * several["rate_per_cpu_s"] / one["rate_per_cpu_s"]
    settings = {**options.model_dump(mode="json"), "cores": len(cores), "generator_cores": len(free)}
    write_report(options.out, command=["bench", "shards", *arguments], settings=settings, results=list(rows.values()))
    print_table(console, f"Recommend({options.count}), closed loop", list(rows.values()), COLUMNS)
    console.print(f"{options.out}")


def _prepared(options: ShardsOptions, server: Server, shards: int, free: tuple[int, ...] | None) -> tuple[int, Load]:
    """The server's process and the load for it, after the history of the users was recorded."""
    with Client(server.address, timeout_s=60.0) as client:
        population = Population([item.item_id for item in client.list_items()], options.users, seed=0)
        record(client, list(population.history(EVENTS_PER_USER)))
        known = ShardMap.from_status(client.serving_status())
    calls = population.recommend_calls(options.count, owner=known.address_of if known else None)
    length = options.warm_up_s + options.duration_s
    # As many callers for each shard: fewer would make smaller micro-batches, which is another comparison.
    callers = options.concurrency * shards
    load = Load(server.address, calls, 0.0, length, options.warm_up_s, concurrency=callers, cpus=free)
    return server.pid, load


def measure_load(case: str, pid: int, load: Load, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """One row of what a load found, begun now by a process of the pool; `pid` is the server's."""
    used = cpu_seconds(pid)
    outcome = pool.submit(generate, replace(load, start=time.monotonic() + 0.5)).result()
    row = {"case": case, **summarise([outcome])}
    now = cpu_seconds(pid)
    if used is not None and now is not None:
        row["server_cpu"] = (now - used) / load.duration_s
        row["rate_per_cpu_s"] = row["rate_per_s"] / row["server_cpu"]
    return row
