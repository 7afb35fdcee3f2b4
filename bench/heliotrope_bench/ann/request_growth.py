"""What a whole request costs as the catalogue grows: Recommend over gRPC, one shard, in turns with an empty handler."""

import os
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from heliotrope import Client
from heliotrope_bench.empty_server import EmptyServer
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.generator import Load, ready
from heliotrope_bench.job import Server
from heliotrope_bench.load import free_cpus
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.shards import measure_load

REQUEST = "request"
"""The mode of these rows, beside those of the search alone."""
COUNT, CALLERS, USERS, EVENTS_PER_USER = 10, 64, 1_000, 20
WARM_UP_S = 1.0
_EMPTY = 0


def measure_requests(stores: Mapping[int, Path], *, rounds: int, duration_s: float) -> list[dict[str, Any]]:
    """A row for each number of items and its snapshot store.

    `us` is the server's CPU time for a request, the median of the rounds; `of_empty` the median of what an empty
    handler took in the same round over it. All servers run from the start, on one core; each is loaded in its turn by
    a closed loop. Raises ServerLostError for a request that fails.
    """
    cpus = (min(os.sched_getaffinity(0)),) if hasattr(os, "sched_getaffinity") else None
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heliotrope-growth-")))
        empty = stack.enter_context(EmptyServer(cpus))
        cases: dict[int, tuple[int, Load]] = {}
        for items, store in stores.items():
            flags = ["--snapshots", str(store), "--data", str(folder / f"{items}"), "--port", "0", "--shards", "1"]
            server = stack.enter_context(Server(flags, log=folder / f"{items}.log", cpus=cpus))
            cases[items] = server.pid, _load(server.address, _calls(server.address, items), duration_s, cpus)
        # What is sent to it does not matter to an empty handler.
        cases[_EMPTY] = empty.pid, _load(empty.address, next(iter(cases.values()))[1].calls, duration_s, cpus)
        pool.submit(ready).result()
        measured: dict[int, list[dict[str, Any]]] = {items: [] for items in cases}
        for _ in range(rounds):
            for items, (pid, load) in cases.items():
                row = measure_load(f"{items:,} items", pid, load, pool)
                if row["errors"]:
                    raise ServerLostError(f"{row['case']}: {row['errors']} requests failed: {row['errors_by_code']}")
                measured[items].append(row)
    return [_summary(items, measured[items], measured[_EMPTY]) for items in stores]


def _calls(address: str, items: int) -> Any:
    """Recommend for users whose events are recorded before."""
    # The ids of a synthetic store, without asking for a million of them.
    population = Population([f"i{row}" for row in range(items)], USERS, seed=0)
    with Client(address, timeout_s=60.0) as client:
        record(client, list(population.history(EVENTS_PER_USER)))
    return population.recommend_calls(COUNT)


def _load(address: str, calls: Any, duration_s: float, server_cpus: tuple[int, ...] | None) -> Load:
    length = WARM_UP_S + duration_s
    return Load(address, calls, 0.0, length, WARM_UP_S, concurrency=CALLERS, cpus=free_cpus(server_cpus))


def _summary(items: int, rounds: list[dict[str, Any]], empty: list[dict[str, Any]]) -> dict[str, Any]:
    costs = [1e6 / row["rate_per_cpu_s"] for row in rounds]
    shares = [row["rate_per_cpu_s"] / bare["rate_per_cpu_s"] for row, bare in zip(rounds, empty, strict=True)]
    return {
        "items": items,
        "mode": REQUEST,
        "setting": f"Recommend({COUNT}) over gRPC",
        "us": statistics.median(costs),
        "of_empty": statistics.median(shares),
        "rate_per_s": statistics.median(row["rate_per_s"] for row in rounds),
        "p99_ms": statistics.median(row["p99_ms"] for row in rounds),
        "rounds_us": costs,
        "rounds_of_empty": shares,
    }
