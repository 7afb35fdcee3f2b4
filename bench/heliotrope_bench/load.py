"""`heliotrope bench load`: how much a server takes, how fast it answers meanwhile, and how right the answers are.

Cases: Recommend, StreamRecommend and BatchRecommend, each beside an empty gRPC handler of its shape on the same core
(closed loop, in turns), and BatchRecommend also beside the bare search of the same vectors; RecordEvents in large
batches; a mix of calls at a fixed rate or at rising rates (open loop, Poisson arrivals); and recall@10.
"""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope_bench.bare_search import bare_search
from heliotrope_bench.empty_server import EmptyServer
from heliotrope_bench.generator import Load, Outcome, PreparedCall, generate, histogram, poisson_arrivals, ready
from heliotrope_bench.job import Server
from heliotrope_bench.load_data import Population, mixed, record
from heliotrope_bench.recall import SnapshotArrays, queries_of, served_recall
from heliotrope_bench.report import print_table, write_report

RECOMMEND_CASE, STREAM_CASE = "Recommend({count})", "StreamRecommend({count})"
BATCH_CASE = "BatchRecommend({count}), 256 a call: users"
EMPTY, EMPTY_STREAM, EMPTY_BATCH = "empty handler", "empty stream", "empty handler, a batch of 256 a call"
BARE = "bare search, 256 at once: queries"
RECALL_USERS = 200
BARE_USERS = 512
STREAMS = 8
INTAKE_BATCHES = (100, 1_000)
SWEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Offered rates of the sweep, as shares of what the closed loop reached."""

INTAKE_BATCHES = (100, 1_000)
"""Events in each call of the intake cases: what a stream processor sends, and the most that a call may hold."""

DIVERSITY = 0.3
"""Of the case that shows what a rule for the list costs."""
MOST_WITH_RULES = 100
"""Longest list with rules; see heliotrope.v1.ListRules."""

COLUMNS = {
    "case": "",
    "rate_per_s": ",.0f",
    "of_ceiling": ".0%",
    "of_bare": ".0%",
    "rate_per_cpu_s": ",.0f",
    "p50_ms": ",.2f",
    "p99_ms": ",.2f",
    "p99_9_ms": ",.2f",
    "recall@10": ".4f",
    "server_cpu": ".0%",
    "generator_cpu": ".0%",
    "errors": "d",
}

Positive = Annotated[float, Field(gt=0)]


class LoadOptions(BaseSettings):
    """Loads a server over gRPC and measures rate, latency, errors and recall."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench load", cli_kebab_case=True, cli_hide_none_type=True
    )

    target: str | None = Field(None, description="HOST:PORT of a running server; or give --snapshots")
    snapshots: Path | None = Field(None, description="snapshot store: starts a server of its own")
    shards: Annotated[int, Field(ge=1, le=64)] = Field(1, description="shards of the own server")
    server_cpus: str = Field("0", description="cores of the own server, such as 0 or 0,1; empty: any")
    load_cpus: str = Field("", description="cores of the generators; empty: all that the server does not have")
    processes: Annotated[int, Field(ge=1, le=64)] = Field(1, description="generator processes")
    rate: Positive | None = Field(
        None, description="calls per second of the open loop; without it a sweep finds the highest that holds"
    )
    p99_ms: list[Positive] = Field(
        [10.0, 25.0], min_length=1, description="latencies that 99 % of the calls must keep: the highest rate for each"
    )
    duration_s: Positive = Field(8.0, description="seconds that each case is measured")
    warm_up_s: Annotated[float, Field(ge=0)] = Field(2.0, description="seconds before, not measured")
    rounds: Annotated[int, Field(ge=1)] = Field(3, description="turns of the ceilings and what they are compared with")
    concurrency: Annotated[int, Field(ge=1)] = Field(64, description="callers of the closed loop")
    count: Annotated[int, Field(ge=1, le=1_000)] = Field(10, description="items per recommendation")
    users: Annotated[int, Field(ge=1)] = Field(2_000, description="synthetic users")
    events_per_user: Annotated[int, Field(ge=1)] = Field(20, description="events of each user before the load")
    record_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="share of RecordEvents among the calls of the open loop"
    )
    record_batch: Annotated[int, Field(ge=1, le=1_000)] = Field(5, description="events in each of those calls")
    batch_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of BatchRecommend, 16 users a call"
    )
    upsert_share: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="share of UpsertItems of one new item")
    model: Path | None = Field(None, description="model folder of the own server, which UpsertItems needs")
    intake_events: Annotated[int, Field(ge=0)] = Field(100_000, description="events of the intake case")
    seed: int = Field(0, description="seed of users, events and arrivals")
    out: Path | None = Field(None, description="file for the raw results, as JSON")

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if (self.target is None) == (self.snapshots is None):
            raise ValueError("give either --target HOST:PORT or --snapshots STORE")
        if self.record_share + self.batch_share + self.upsert_share > 1.0:
            raise ValueError("the shares of RecordEvents, BatchRecommend and UpsertItems add up to more than 1")
        if self.upsert_share and self.snapshots is not None and self.model is None:
            raise ValueError("--upsert-share needs --model: new items are embedded")
        return self


def run(options: LoadOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all cases; raises a BenchError when the server fails."""
    with _under_test(options) as server:
        bench = LoadBench(options, server, console)
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            rows = bench.run(pool)
    if options.out:
        settings = {**options.model_dump(mode="json"), "snapshot": server.snapshot, "items": bench.item_count}
        write_report(options.out, command=["bench", "load", *arguments], settings=settings, results=rows)
    print_table(console, f"{bench.item_count:,} items, {options.shards} shard(s)", rows, COLUMNS)


@dataclass(frozen=True)
class UnderTest:
    """The server that is loaded; `pid` and `cpus` are known when it is our own."""

    address: str
    snapshot: str
    pid: int | None = None
    cpus: tuple[int, ...] | None = None


@contextmanager
def _under_test(options: LoadOptions) -> Iterator[UnderTest]:
    if options.target:
        with Client(options.target) as client:
            status = client.serving_status()
        yield UnderTest(options.target, status.shards[0].snapshot_version)
        return
    cpus = parse_cpus(options.server_cpus)
    with tempfile.TemporaryDirectory(prefix="heliotrope-load-") as folder:
        flags = ["--snapshots", str(options.snapshots), "--data", f"{folder}/data", "--port", "0"]
        flags += ["--shards", str(options.shards), *(["--model", str(options.model)] if options.model else [])]
        with Server(flags, log=Path(folder, "serve.log"), cpus=cpus) as server:
            yield UnderTest(server.address, server.snapshot, server.pid, cpus)


def parse_cpus(text: str) -> tuple[int, ...] | None:
    """`0,2` as numbers; None for an empty text or on a system that can't pin."""
    if not text or not hasattr(os, "sched_getaffinity"):
        return None
    cpus = tuple(int(part) for part in text.split(","))
    if not set(cpus) <= os.sched_getaffinity(0):
        raise ValueError(f"this process may run on cores {sorted(os.sched_getaffinity(0))}, not on {text}")
    return cpus


def free_cpus(taken: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The cores that a server on these leaves to us; None: there are none, or it may run on any."""
    return None if taken is None else tuple(sorted(os.sched_getaffinity(0) - set(taken))) or None


@dataclass(frozen=True)
class _Closed:
    """A case of the closed loop: `concurrency` callers, or `streams` on which so many questions are under way.

    `once`: every call is sent once and none is warm-up.
    """

    case: str
    ceiling: str
    calls: Sequence[PreparedCall]
    concurrency: int
    streams: int = 0
    once: bool = False


class LoadBench:
    """The cases against one server."""

    def __init__(self, options: LoadOptions, server: UnderTest, console: Console) -> None:
        self._options = options
        self._server = server
        self._console = console
        self._load_cpus = parse_cpus(options.load_cpus)
        if self._load_cpus is None:
            self._load_cpus = free_cpus(server.cpus)
        with Client(server.address, timeout_s=60.0) as client:
            item_ids = [item.item_id for item in client.list_items()]
        self.item_count = len(item_ids)
        self._population = Population(item_ids, options.users, options.seed)
        self._queries: NDArray[np.float32] | None = None

    def run(self, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
        """All rows, in the order of the table."""
        options, population = self._options, self._population
        # The generators' processes start and import before the first of them has a moment to keep.
        for future in [pool.submit(ready) for _ in range(options.processes)]:
            future.result()
        self._say("recording the history of the users")
        seen = self._record_history()
        recommend = population.recommend_calls(options.count)
        if options.snapshots is not None:
            self._say("recall and the queries of the users")
            arrays = SnapshotArrays.read(options.snapshots, self._server.snapshot)
            users = population.user_ids()
            recall = asyncio.run(served_recall(self._server.address, arrays, users[:RECALL_USERS], seen))
            self._queries = asyncio.run(queries_of(self._server.address, arrays, users[:BARE_USERS]))
        self._say("Recommend, StreamRecommend and BatchRecommend, in turns with their ceilings")
        rows = self._in_turns(pool, recommend)
        served = next(row for row in rows if row["case"] == self._case(RECOMMEND_CASE))
        if options.snapshots is not None:
            served["recall@10"] = recall
        self._say("open loop")
        rows += self._open_loop(pool, recommend, served["rate_per_s"])
        if options.intake_events:
            self._say("event intake")
            for size in INTAKE_BATCHES:
                calls = population.record_calls(
                    number=max(1, options.intake_events // size), events_per_call=size, salt=f"intake-{time.time_ns()}"
                )
                case = f"RecordEvents, {size:,} a call: events"
                rows.append(self._closed(_Closed(case, "", calls, 8, once=True), pool))
        return rows

    def _record_history(self) -> dict[str, set[str]]:
        """Records the past of all users; returns what each has seen."""
        events = list(self._population.history(self._options.events_per_user))
        with Client(self._server.address, timeout_s=60.0) as client:
            record(client, events)
        seen: dict[str, set[str]] = {}
        for event in events:
            seen.setdefault(event.user_id, set()).add(event.item_id)
        return seen

    def _in_turns(self, pool: ProcessPoolExecutor, recommend: Sequence[PreparedCall]) -> list[dict[str, Any]]:
        """Every kind of question in a closed loop; with a server of our own, in turns with empty handlers on the same
        cores and with the bare search of the same vectors.
        """
        options, concurrency, population = self._options, self._options.concurrency, self._population
        batches = population.batch_recommend_calls(options.count)
        cases = [_Closed(self._case(RECOMMEND_CASE), EMPTY, recommend, concurrency)]
        if options.count <= MOST_WITH_RULES:
            ruled = population.recommend_calls(options.count, diversity=DIVERSITY)
            name = self._case(f"{RECOMMEND_CASE} of diversity {DIVERSITY}")
            cases.append(_Closed(name, EMPTY, ruled, concurrency))
        streamed = population.stream_calls(options.count)
        cases.append(_Closed(self._case(STREAM_CASE), EMPTY_STREAM, streamed, concurrency, STREAMS))
        cases.append(_Closed(self._case(BATCH_CASE), EMPTY_BATCH, batches, 4))
        ceilings = [
            _Closed(EMPTY, "", recommend, concurrency),
            _Closed(EMPTY_STREAM, "", streamed, concurrency, STREAMS),
            _Closed(EMPTY_BATCH, "", batches, 4),
        ]
        measured: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.rounds if self._server.cpus is not None else 1):
            if self._server.cpus is not None:
                with EmptyServer(self._server.cpus) as empty:
                    target = UnderTest(empty.address, "", empty.pid)
                    for one in ceilings:
                        measured.setdefault(one.case, []).append(self._closed(one, pool, target=target))
            for one in cases:
                measured.setdefault(one.case, []).append(self._closed(one, pool))
            if self._queries is not None:
                measured.setdefault(BARE, []).append(self._bare())
        rows = {case: median_row(each) for case, each in measured.items()}
        for one in cases:
            row, ceiling = rows[one.case], rows.get(one.ceiling)
            if ceiling is not None:
                row["of_ceiling"] = row["rate_per_s"] / ceiling["rate_per_s"]
                row["of_ceiling_by_cpu"] = row["rate_per_cpu_s"] / ceiling["rate_per_cpu_s"]
        if BARE in rows:
            rows[self._case(BATCH_CASE)]["of_bare"] = (
                rows[self._case(BATCH_CASE)]["rate_per_s"] / rows[BARE]["rate_per_s"]
            )
        return list(rows.values())

    def _bare(self) -> dict[str, Any]:
        options = self._options
        assert self._queries is not None and options.snapshots is not None
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found = alone.submit(
                bare_search,
                options.snapshots,
                self._server.snapshot,
                self._queries,
                count=options.count,
                seconds=options.duration_s / 2,
                cpus=self._server.cpus and self._server.cpus[:1],
            ).result()
        return {"case": BARE, "rate_per_s": found.rate_per_s, "recall@10": found.recall, "how": found.how, "errors": 0}

    def _case(self, name: str) -> str:
        return name.format(count=self._options.count)

    def _open_loop(
        self, pool: ProcessPoolExecutor, recommend: Sequence[PreparedCall], reached: float
    ) -> list[dict[str, Any]]:
        """One row at the fixed rate; or one for each rate of the sweep up to the first that keeps no bound, and one at
        half the highest rate that keeps the tightest bound that any rate keeps.
        """
        options, rows = self._options, []
        for rate in [options.rate] if options.rate else [share * reached for share in SWEEP]:
            row = self._open_case(pool, recommend, rate)
            row["keeps_ms"] = [bound for bound in options.p99_ms if row["p99_ms"] <= bound and not row["errors"]]
            rows.append(row)
            if not row["keeps_ms"]:
                break
        if options.rate is None:
            for bound in sorted(options.p99_ms):
                kept = [row["offered_per_s"] for row in rows if bound in row["keeps_ms"]]
                if kept:
                    half = self._open_case(pool, recommend, max(kept) / 2)
                    half["case"] = f"mix, half of the highest rate within {bound:g} ms, {max(kept):,.0f}/s"
                    half["p99_over_p50"] = half["p99_ms"] / half["p50_ms"]
                    rows.append(half)
                    break
        return rows

    def _open_case(self, pool: ProcessPoolExecutor, recommend: Sequence[PreparedCall], rate: float) -> dict[str, Any]:
        options, population = self._options, self._population
        length, share = options.warm_up_s + options.duration_s, rate / options.processes
        loads = []
        for process in range(options.processes):
            generator = np.random.default_rng([options.seed, process, int(rate)])
            due = poisson_arrivals(share, length, generator)
            number, salt = len(due), f"{time.time_ns()}-{process}"
            shares: list[tuple[float, Sequence[PreparedCall]]] = []
            if options.record_share:
                events = population.record_calls(number=number, events_per_call=options.record_batch, salt=salt)
                shares.append((options.record_share, events))
            if options.batch_share:
                batches = population.batch_recommend_calls(options.count, number=number, users_per_call=16)
                shares.append((options.batch_share, batches))
            if options.upsert_share:
                shares.append((options.upsert_share, population.upsert_calls(number=number, salt=salt)))
            calls = mixed(recommend, shares, number, options.seed + process)
            plan = Load(self._server.address, calls, 0.0, length, options.warm_up_s, due, cpus=self._load_cpus)
            loads.append(plan)
        row = self._measure(f"mix, open loop, {rate:,.0f}/s due", pool, loads)
        return {**row, "offered_per_s": rate}

    def _closed(self, one: "_Closed", pool: ProcessPoolExecutor, *, target: UnderTest | None = None) -> dict[str, Any]:
        """One case of the closed loop, its callers shared out over all processes."""
        options = self._options
        warm_up = 0.0 if one.once else options.warm_up_s
        length = 600.0 if one.once else warm_up + options.duration_s
        loads = [
            Load(
                (target or self._server).address,
                one.calls[process :: options.processes] if one.once else one.calls,
                0.0,
                length,
                warm_up,
                concurrency=max(1, one.concurrency // options.processes),
                once=one.once,
                cpus=self._load_cpus,
                streams=one.streams,
            )
            for process in range(options.processes)
        ]
        return self._measure(one.case, pool, loads, target)

    def _measure(
        self, case: str, pool: ProcessPoolExecutor, loads: Sequence[Load], target: UnderTest | None = None
    ) -> dict[str, Any]:
        start = time.monotonic() + 1.0
        used = cpu_seconds((target or self._server).pid)
        futures = [pool.submit(generate, replace(load, start=start)) for load in loads]
        outcomes = [future.result() for future in futures]
        row = {"case": case, **summarise(outcomes)}
        now = cpu_seconds((target or self._server).pid)
        if used is not None and now is not None:
            # Over the warm-up too: what the server did per second of its own CPU time holds on a busy machine.
            row["server_cpu"] = (now - used) / (loads[0].warm_up_s + outcomes[0].measured_s)
            row["rate_per_cpu_s"] = row["rate_per_s"] / row["server_cpu"]
        return row

    def _say(self, what: str) -> None:
        self._console.print(f"{what} ...", style="dim")


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one case from those of its generators."""
    latency = histogram([outcome.latency for outcome in outcomes])
    lag = histogram([outcome.lag for outcome in outcomes])
    errors: Counter[str] = Counter()
    for outcome in outcomes:
        errors.update(outcome.errors)
    return {
        "rate_per_s": sum(outcome.units / outcome.measured_s for outcome in outcomes),
        "calls_per_s": sum(outcome.calls / outcome.measured_s for outcome in outcomes),
        **{
            f"p{name}_ms": latency.get_value_at_percentile(percentile) / 1e3
            for name, percentile in (("50", 50), ("95", 95), ("99", 99), ("99_9", 99.9))
        },
        "max_ms": latency.get_max_value() / 1e3,
        "send_lag_p99_ms": lag.get_value_at_percentile(99) / 1e3,
        "generator_cpu": max(outcome.cpu_share for outcome in outcomes),
        "errors": sum(errors.values()),
        "errors_by_code": dict(errors),
    }


def median_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the median rate, with the rates of all rounds."""
    ordered = sorted(rows, key=lambda row: float(row["rate_per_s"]))
    middle = dict(ordered[len(ordered) // 2])
    middle["rounds_per_s"] = [row["rate_per_s"] for row in rows]
    return middle


def cpu_seconds(pid: int | None) -> float | None:
    """CPU time that a process and its children have used; None when it is not ours to see."""
    if pid is None:
        return None
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(float(time.user + time.system) for time in times)
