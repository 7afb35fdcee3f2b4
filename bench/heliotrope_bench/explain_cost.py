"""`heliotrope bench explain`: what explanations cost.

Recommend and BatchRecommend, each without and with `explain`, in turns on one server in a closed loop; what is
compared is the CPU time of the server for each answer, which other work on the machine disturbs least. Explain, which
scores the whole catalogue, is asked by one caller. With `--before` the server of another checkout answers the plain
requests in the same turns: what it takes to have explanations without asking for them.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import grpc
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope import Client
from heliotrope_bench.generator import Load, PreparedCall, generate, ready
from heliotrope_bench.job import Server
from heliotrope_bench.load import cpu_seconds, free_cpus, parse_cpus, summarise
from heliotrope_bench.load_data import Population, record
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store

BOUND = 0.20
"""What an explanation may add to a request that asks for it."""

COLUMNS = {
    "case": "",
    "rate_per_s": ",.0f",
    "us_of_cpu": ",.0f",
    "added": "+.0%",
    "p50_ms": ",.2f",
    "p99_ms": ",.2f",
    "reply_bytes": ",.0f",
    "errors": "d",
}


class ExplainOptions(BaseSettings):
    """Measures requests without and with explanations, in turns, and what Explain costs."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench explain", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path | None = Field(None, description="snapshot store; default: a synthetic one of --items")
    items: Annotated[int, Field(ge=100, description="items of the synthetic snapshot")] = 100_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of its vectors")] = 64
    before: Path | None = Field(None, description="another checkout, built: its server answers the plain requests too")
    server_cpus: str = Field("0", description="cores of the servers, such as 0 or 0,1; empty: any")
    count: Annotated[int, Field(ge=1, le=100)] = Field(10, description="items per recommendation")
    users: Annotated[int, Field(ge=1)] = Field(2_000, description="synthetic users")
    events_per_user: Annotated[int, Field(ge=1)] = Field(20, description="events of each user")
    concurrency: Annotated[int, Field(ge=1)] = Field(64, description="callers of the closed loop")
    requests: Annotated[int, Field(ge=256)] = Field(4_096, description="answers of each case in a turn")
    explain_calls: Annotated[int, Field(ge=1)] = Field(32, description="calls of Explain in a turn")
    rounds: Annotated[int, Field(ge=1)] = Field(5, description="turns of the cases, after one that is not measured")
    work: Path = Field(Path(".bench"), description="where the synthetic snapshot is kept between runs")
    out: Path = Field(Path("explain.json"), description="raw results")


@dataclass(frozen=True)
class _Case:
    """`beside` is the case that it is compared with."""

    name: str
    server: Server
    calls: Sequence[PreparedCall]
    callers: int
    beside: str = ""


def run(options: ExplainOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all turns; raises a BenchError when a server fails."""
    store = options.snapshots or synthetic_store(options.work / "synthetic", options.items, options.dimension)
    cpus = parse_cpus(options.server_cpus)
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heliotrope-explain-")))
        servers = {}
        for name, source in (("now", None), *((("before", options.before),) if options.before else ())):
            flags = ["--snapshots", str(store), "--data", str(folder / name), "--port", "0"]
            server = Server(flags, log=folder / f"{name}.log", cpus=cpus, source=source)
            servers[name] = stack.enter_context(server)
        population = _recorded(options, list(servers.values()))
        cases = _cases(options, population, servers)
        pool.submit(ready).result()
        measured: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
        for turn in range(1 + options.rounds):
            for case in cases:
                row = _measure(case, free_cpus(cpus), pool)
                if turn:
                    measured[case.name].append(row)
        sizes = {case.name: _reply_bytes(case) for case in cases}
    rows = []
    for case in cases:
        row = _summary(measured[case.name])
        row["reply_bytes"] = sizes[case.name]
        if case.beside:
            # Of the same turns: the machine may be busier in some of them than in others.
            pairs = zip(measured[case.name], measured[case.beside], strict=True)
            row["rounds_added"] = [one["us_of_cpu"] / other["us_of_cpu"] - 1.0 for one, other in pairs]
            row["added"] = statistics.median(row["rounds_added"])
        rows.append(row)
    settings = {
        **options.model_dump(mode="json"),
        "snapshot": servers["now"].snapshot,
        "items": len(population.item_ids),
    }
    write_report(options.out, command=["bench", "explain", *arguments], settings=settings, results=rows)
    print_table(console, f"{len(population.item_ids):,} items, {options.events_per_user} events a user", rows, COLUMNS)
    for row in rows:
        if "explained" in row["case"] and "added" in row:
            kept = "holds" if row["added"] <= BOUND else "does not hold"
            console.print(f"{row['case']}: {row['added']:+.0%}, the bound of {BOUND:+.0%} {kept}")
    console.print(f"{options.out}")


def _recorded(options: ExplainOptions, servers: Sequence[Server]) -> Population:
    """The users, with their history on every server."""
    with Client(servers[0].address, timeout_s=60.0) as client:
        population = Population([item.item_id for item in client.list_items()], options.users, seed=0)
    events = list(population.history(options.events_per_user))
    for server in servers:
        with Client(server.address, timeout_s=60.0) as client:
            record(client, events)
    return population


def _cases(options: ExplainOptions, population: Population, servers: dict[str, Server]) -> list[_Case]:
    now, count = servers["now"], options.count
    single, batch = f"Recommend({count})", f"BatchRecommend({count}), 256 a call"
    number, batches = options.requests, options.requests // 256
    plain = population.recommend_calls(count, number=number)
    cases = [
        _Case(single, now, plain, options.concurrency),
        _Case(
            f"{single}, explained",
            now,
            population.recommend_calls(count, explain=True, number=number),
            options.concurrency,
            single,
        ),
        _Case(batch, now, population.batch_recommend_calls(count, number=batches), 4),
        _Case(
            f"{batch}, explained",
            now,
            population.batch_recommend_calls(count, explain=True, number=batches),
            4,
            batch,
        ),
    ]
    if "before" in servers:
        name = f"{single}, the checkout before"
        cases.insert(0, _Case(name, servers["before"], plain, options.concurrency))
        cases[1] = replace(cases[1], beside=name)
    for name, items, counterfactuals in (
        (f"Explain: the {count} of the list, 3 counterfactuals each", 0, 3),
        (f"Explain: the {count} of the list, no counterfactuals", 0, 0),
        ("Explain: one item, 3 counterfactuals", 1, 3),
    ):
        calls = population.explain_calls(
            count, items=items, counterfactuals=counterfactuals, number=options.explain_calls
        )
        cases.append(_Case(name, now, calls, 1))
    return cases


def _measure(case: _Case, cpus: tuple[int, ...] | None, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Every call once, so that none is under way when the CPU time is read."""
    load = Load(case.server.address, case.calls, 0.0, 600.0, 0.0, concurrency=case.callers, once=True, cpus=cpus)
    used = cpu_seconds(case.server.pid)
    outcome = pool.submit(generate, replace(load, start=time.monotonic() + 0.2)).result()
    now = cpu_seconds(case.server.pid)
    assert used is not None and now is not None
    answers = sum(call.units for call in case.calls)
    return {"case": case.name, **summarise([outcome]), "us_of_cpu": 1e6 * (now - used) / answers}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round in the middle by CPU time, with the times of all."""
    middle = dict(sorted(rows, key=lambda row: float(row["us_of_cpu"]))[len(rows) // 2])
    middle["rounds_us_of_cpu"] = [row["us_of_cpu"] for row in rows]
    return middle


def _reply_bytes(case: _Case) -> float:
    """The mean size of a reply, for each unit of a call."""

    asked = case.calls[:16]
    with grpc.insecure_channel(case.server.address) as channel:
        methods: dict[str, Any] = {call.method: channel.unary_unary(call.method) for call in asked}
        size = sum(len(methods[call.method](call.request, timeout=60.0)) for call in asked)
    return size / sum(call.units for call in asked)
