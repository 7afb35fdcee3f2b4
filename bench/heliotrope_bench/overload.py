"""`heliotrope bench overload`: what a server still answers when it is asked for more than it can.

First a sweep finds the highest rate at which all but one in a hundred calls are answered within their deadline. Then
come rounds of 1, 2 and 5 times that rate over few and many connections, a second of rest before each: goodput, which
counts calls answered within the deadline, what became of the others, and how long both took. At last the same flood
comes from one client beside polite ones, which together ask a tenth of the highest rate, each on a connection of its
own.
"""

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope_bench.errors import BenchError
from heliotrope_bench.flood import Flood, FloodOutcome, flood
from heliotrope_bench.generator import histogram, poisson_arrivals, ready
from heliotrope_bench.job import Server
from heliotrope_bench.load import cpu_seconds, free_cpus, parse_cpus
from heliotrope_bench.load_data import Population, mixed, record
from heliotrope_bench.report import print_table, write_report

COLUMNS = {
    "case": "",
    "offered_per_s": ",.0f",
    "goodput_per_s": ",.0f",
    "in_time": ".0%",
    "of_highest": ".0%",
    "of_highest_by_cpu": ".0%",
    "refused": ".1%",
    "p99_ms": ",.1f",
    "server_cpu": ".0%",
    "generator_cpu": ".0%",
}
SHARE_IN_TIME = 0.99
FIRST_RATE, STEP = 250.0, 1.25
"""Of the sweep, calls per second; a rate that fails ends it."""
REST_S = 1.0
"""Before each case, for what the last one left waiting."""
POLITE_SHARE, POLITE_CONNECTIONS = 0.1, 8
"""Some end in the lane of the flood and some beside it, by chance: see LANES of the server."""
EVENTS_PER_USER, EVENTS_PER_CALL = 20, 5

Positive = Annotated[float, Field(gt=0)]


class OverloadOptions(BaseSettings):
    """Overloads a server of its own and measures what is answered in time."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench overload", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path = Field(description="snapshot store")
    server_cpus: str = Field("0", description="cores of the server, such as 0 or 0,1; empty: any")
    shards: Annotated[int, Field(ge=1, le=64)] = Field(1, description="shards of the server")
    deadline_ms: Positive = Field(250.0, description="deadline of every call, from when it is due")
    times: list[Positive] = Field([1.0, 2.0, 5.0], description="multiples of the highest rate")
    rate: Positive | None = Field(None, description="take this for the highest rate, without a sweep")
    record_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description=f"share of RecordEvents, {EVENTS_PER_CALL} events a call; the others are Recommend"
    )
    count: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="items per recommendation")
    connections: list[Annotated[int, Field(ge=1, le=1_000)]] = Field(
        [8, 1, 32], description="connections that the calls come over; the sweep takes the first number"
    )
    users: Annotated[int, Field(ge=1)] = Field(2_000, description="synthetic users")
    duration_s: Positive = Field(5.0, description="seconds that each case is measured")
    warm_up_s: Annotated[float, Field(ge=0)] = Field(1.0, description="seconds before, not measured")
    rounds: Annotated[int, Field(ge=1)] = Field(3, description="turns of the multiples")
    seed: int = Field(0, description="seed of users, events and arrivals")
    out: Path = Field(Path("overload.json"), description="raw results")


def run(options: OverloadOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs the sweep, the rounds and the two clients; raises a BenchError when the server fails."""
    cpus = parse_cpus(options.server_cpus)
    with tempfile.TemporaryDirectory(prefix="heliotrope-overload-") as folder:
        flags = ["--snapshots", str(options.snapshots), "--data", f"{folder}/data", "--port", "0"]
        flags += ["--shards", str(options.shards)]
        with (
            Server(flags, log=Path(folder, "serve.log"), cpus=cpus) as server,
            ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        ):
            generator_cpus = free_cpus(cpus)
            bench = _Overload(options, server, generator_cpus, pool, console)
            rows = bench.run()
    conditions = {
        "snapshot": server.snapshot,
        "items": bench.item_count,
        "generator_cores": 0 if generator_cpus is None else len(generator_cpus),
    }
    write_report(
        options.out,
        command=["bench", "overload", *arguments],
        settings={**options.model_dump(mode="json"), **conditions},
        results=rows,
    )
    print_table(console, f"deadline {options.deadline_ms:g} ms", rows, COLUMNS)
    console.print(f"{options.out}")


@dataclass(frozen=True)
class _Source:
    """One client: the calls due in each second, its share of RecordEvents, and its connections."""

    rate: float
    record_share: float
    connections: int


class _Overload:
    def __init__(
        self,
        options: OverloadOptions,
        server: Server,
        cpus: tuple[int, ...] | None,
        pool: ProcessPoolExecutor,
        console: Console,
    ) -> None:
        self._options, self._server, self._cpus, self._pool, self._console = options, server, cpus, pool, console
        with Client(server.address, timeout_s=60.0) as client:
            item_ids = [item.item_id for item in client.list_items()]
            self.item_count = len(item_ids)
            self._population = Population(item_ids, options.users, options.seed)
            record(client, list(self._population.history(EVENTS_PER_USER)))

    def run(self) -> list[dict[str, Any]]:
        options = self._options
        for future in [self._pool.submit(ready) for _ in range(2)]:
            future.result()
        rows: list[dict[str, Any]] = []
        highest = options.rate or self._sweep(rows)
        rounds: dict[tuple[int, float], list[dict[str, Any]]] = {
            (connections, times): [] for connections in options.connections for times in sorted(options.times)
        }
        for number in range(options.rounds):
            self._console.print(f"round {number + 1} of {options.rounds} ...", style="dim")
            for (connections, times), each in rounds.items():
                case = f"{times:g} times, {connections} connections"
                each.append(self._alone(case, times * highest, connections))
        for (connections, times), each in rounds.items():
            base = _median(rounds[connections, min(options.times)])
            row = {**_median(each), "times": times, "connections": connections}
            row["of_highest"] = row["goodput_per_s"] / base["goodput_per_s"]
            row["of_highest_by_cpu"] = row["goodput_per_cpu_s"] / base["goodput_per_cpu_s"]
            row["rounds_goodput_per_s"] = [one["goodput_per_s"] for one in each]
            row["rounds_goodput_per_cpu_s"] = [one["goodput_per_cpu_s"] for one in each]
            rows.append(row)
        rows += self._beside(max(options.times) * highest, POLITE_SHARE * highest)
        return rows

    def _sweep(self, rows: list[dict[str, Any]]) -> float:
        """The highest rate that is answered in time; adds the rows of the sweep."""
        self._console.print("sweep ...", style="dim")
        rate, highest = FIRST_RATE, 0.0
        while True:
            row = self._alone(f"sweep, {rate:,.0f}/s", rate, self._options.connections[0])
            rows.append(row)
            if row["goodput_per_s"] < SHARE_IN_TIME * row["offered_per_s"]:
                break
            highest, rate = rate, rate * STEP
        if not highest:
            raise BenchError(
                f"of {FIRST_RATE:g} calls a second {row['goodput_per_s']:.0f} were answered within "
                f"{self._options.deadline_ms:g} ms: give a longer --deadline-ms"
            )
        return highest

    def _alone(self, case: str, rate: float, connections: int) -> dict[str, Any]:
        (row,) = self._measured([case], [_Source(rate, self._options.record_share, connections)])
        return row

    def _beside(self, rate: float, polite_rate: float) -> list[dict[str, Any]]:
        """A flood over one connection, and polite clients beside it."""
        self._console.print("a flood beside polite clients ...", style="dim")
        names = ["flood over one connection", "polite clients beside it"]
        sources = [_Source(rate, self._options.record_share, 1), _Source(polite_rate, 0.0, POLITE_CONNECTIONS)]
        return self._measured(names, sources)

    def _measured(self, cases: Sequence[str], sources: Sequence[_Source]) -> list[dict[str, Any]]:
        options = self._options
        time.sleep(REST_S)
        length = options.warm_up_s + options.duration_s
        loads = []
        for number, source in enumerate(sources):
            generator = np.random.default_rng([options.seed, number, int(source.rate)])
            due = poisson_arrivals(source.rate, length, generator)
            asked = self._population.recommend_calls(options.count)
            events = self._population.record_calls(
                number=len(due), events_per_call=EVENTS_PER_CALL, salt=f"{time.time_ns()}-{number}"
            )
            calls = mixed(asked, [(source.record_share, events)], len(due), options.seed)
            deadline_s = options.deadline_ms / 1e3
            load = Flood(self._server.address, calls, 0.0, length, options.warm_up_s, due, deadline_s)
            loads.append(replace(load, connections=source.connections, cpus=self._cpus))
        start, used = time.monotonic() + 0.5, cpu_seconds(self._server.pid)
        futures = [self._pool.submit(flood, replace(load, start=start)) for load in loads]
        rows = [{"case": case, **_figures(future.result())} for case, future in zip(cases, futures, strict=True)]
        now = cpu_seconds(self._server.pid)
        assert used is not None and now is not None, "the server is ours"
        for row in rows:
            row["server_cpu"] = (now - used) / length
            row["goodput_per_cpu_s"] = row["goodput_per_s"] / row["server_cpu"]
        return rows


def _figures(outcome: FloodOutcome) -> dict[str, Any]:
    latency, refusal = histogram([outcome.latency]), histogram([outcome.refusal])
    return {
        "offered_per_s": outcome.offered / outcome.measured_s,
        "goodput_per_s": outcome.good / outcome.measured_s,
        "in_time": outcome.good / max(outcome.offered, 1),
        "late": outcome.late / max(outcome.offered, 1),
        "refused": sum(outcome.refused.values()) / max(outcome.offered, 1),
        "refused_by_code": outcome.refused,
        **{f"p{name}_ms": latency.get_value_at_percentile(name) / 1e3 for name in (50, 95, 99)},
        "refusal_p50_ms": refusal.get_value_at_percentile(50) / 1e3,
        "refusal_p99_ms": refusal.get_value_at_percentile(99) / 1e3,
        "send_lag_p99_ms": histogram([outcome.lag]).get_value_at_percentile(99) / 1e3,
        "generator_cpu": outcome.cpu_share,
    }


def _median(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the median goodput by CPU, which a busy machine moves least."""
    return dict(sorted(rows, key=lambda row: float(row["goodput_per_cpu_s"]))[len(rows) // 2])
