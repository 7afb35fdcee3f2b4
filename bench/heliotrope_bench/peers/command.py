"""`heliotrope bench peers`: the command and its table."""

import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.load import parse_cpus
from heliotrope_bench.peers import PEERS
from heliotrope_bench.peers.catalogue import Catalogue
from heliotrope_bench.peers.closed_loop import ITEMS_PER_CALL
from heliotrope_bench.peers.contest import OURS, STEADY, STREAMING, Contest, Entrant, Terms
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.snapshot_job import export_model

TIMES_FASTER = 3.0
"""What must hold against each peer that is a server, at no worse p99, while events and items stream in."""
COLUMNS = {
    "peer": "",
    "rate_per_s": ",.0f",
    "rate_per_cpu_s": ",.0f",
    "p99_ms": ",.1f",
    "recall@10": ".3f",
    "ours/theirs": ".2f",
    "by_cpu": ".2f",
    "p99_ratio": ".2f",
    "streams/theirs": ".2f",
    "streams_p99_ratio": ".2f",
    "items_per_s": ".1f",
    "new_found": ".2f",
    "errors": "d",
}
"""`ours/theirs` are rates, `by_cpu` the same per second of the engine's CPU time, which a busy machine disturbs less;
ours is asked call by call, and `streams` on a stream for each caller, as the peers' callers hold a connection each;
`new_found` is the recall of what has just arrived."""
LOADED = {"peer": "", "kind": "", "build_s": ",.0f", "memory_mib": ",.0f", "search": ""}

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class PeersOptions(BaseSettings):
    """Measures whole requests through Heliotrope and through other vector engines, on the same data and cores."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench peers", cli_kebab_case=True, cli_hide_none_type=True
    )

    peers: list[str] = Field(list(PEERS), description=f"which of {', '.join(PEERS)}; none: ours alone")
    items: Annotated[int, Field(ge=20)] = Field(63_666, description="real texts in the catalogue")
    dimension: Annotated[int, Field(ge=2)] = Field(127, description="dimensions of the item vectors, without the bias")
    users: Annotated[int, Field(ge=2)] = Field(500, description="synthetic users")
    events_per_user: Count = Field(20, description="events of each user before the load: so much is left out")
    recall: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="recall@10 that the peers are set to")
    callers: Count = Field(16, description="callers of the closed loop")
    duration_s: Positive = Field(8.0, description="seconds that each round is measured")
    warm_up_s: Annotated[float, Field(ge=0)] = Field(2.0, description="seconds before, not measured")
    rounds: Count = Field(3, description="rounds of each scenario, all entrants in turns")
    events_per_s: Positive = Field(100.0, description="events that stream in")
    items_per_s: Positive = Field(20.0, description=f"items that stream in, {ITEMS_PER_CALL} a call")
    server_cpus: str = Field("0", description="cores of the engine under test, such as 0 or 0,1; empty: any")
    load_cpus: str = Field("", description="cores of the clients; empty: all that the engine does not have")
    model: Path | None = Field(None, description="model folder; default: exported into --work")
    work: Path = Field(Path(".bench"), description="where model, embeddings and snapshot are kept between runs")
    out: Path = Field(Path("peers.json"), description="raw results")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.peers:
            if name not in (*PEERS, "none"):
                raise ValueError(f"there is no peer {name!r}; give some of {', '.join(PEERS)}, or none")
        return self


def run(options: PeersOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all entrants; raises a BenchError when ours fails or the data is not there."""
    server_cpus, load_cpus = parse_cpus(options.server_cpus), parse_cpus(options.load_cpus)
    if load_cpus is None and server_cpus is not None:
        load_cpus = tuple(sorted(os.sched_getaffinity(0) - set(server_cpus))) or None
    terms = Terms(
        callers=options.callers,
        warm_up_s=options.warm_up_s,
        duration_s=options.duration_s,
        rounds=options.rounds,
        events_per_s=options.events_per_s,
        items_per_s=options.items_per_s,
        recall=options.recall,
        server_cpus=server_cpus,
        load_cpus=load_cpus,
    )
    catalogue = Catalogue.read(
        options.work,
        options.model or export_model(options.work),
        items=options.items,
        dimension=options.dimension,
        new_items=math.ceil(options.rounds * terms.length_s * options.items_per_s),
        users=options.users,
        events_per_user=options.events_per_user,
    )
    with (
        tempfile.TemporaryDirectory(prefix="heliotrope-peers-") as folder,
        Contest(catalogue, terms, Path(folder), console) as contest,
    ):
        contest.enter_ours()
        for name in options.peers:
            if name in PEERS:
                contest.enter(PEERS[name])
        for scenario in (STEADY, STREAMING):
            contest.run(scenario)
    rows = rows_of(contest.entrants)
    settings = {**options.model_dump(mode="json"), "snapshot": catalogue.version}
    write_report(options.out, command=["bench", "peers", *arguments], settings=settings, results=rows)
    title = f"{options.items:,} items of {options.dimension} dimensions, {options.callers} callers"
    for scenario in (STEADY, STREAMING):
        part = [row for row in rows if row.get("scenario") == scenario]
        print_table(console, f"{title}, {scenario}", part, COLUMNS)
    print_table(console, "as loaded", [row for row in rows if row.get("scenario") != STREAMING], LOADED)
    console.print(f"{options.out}")


def rows_of(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """A row for each entrant and scenario, ours first; for one that fell out, those that it finished and one that says
    why."""
    ours = [next(one for one in entrants if one.kind is kind) for kind in OURS]
    rows = []
    for scenario in (STEADY, STREAMING):
        for entrant in entrants:
            if scenario in entrant.recalls:
                rows.append(_row(entrant, scenario, *ours))
    rows += [{"peer": one.kind.name, "kind": one.kind.kind, "search": one.absent} for one in entrants if one.absent]
    return rows


def _row(entrant: Entrant, scenario: str, server: Entrant, streams: Entrant, engine: Entrant) -> dict[str, Any]:
    """Medians over the rounds; ratios are of rounds that followed one another, and their median is taken too."""
    rounds, recall = entrant.rounds[scenario], entrant.recalls[scenario]
    row: dict[str, Any] = {
        "peer": entrant.kind.name,
        "kind": entrant.kind.kind,
        "scenario": scenario,
        "recall@10": recall.overall,
        "new_found": recall.new_items,
        "memory_mib": entrant.memory_mib,
        "build_s": entrant.load_s,
        "search": entrant.kind.description if entrant.ours else str(entrant.search),
        "description": entrant.kind.description,
        "errors": sum(one["errors"] for one in rounds),
        "rounds": rounds,
    }
    for name in rounds[0]:
        if isinstance(rounds[0][name], float):
            row[name] = statistics.median(one.get(name, math.nan) for one in rounds)
    if entrant.ours:
        return row
    row["ours/theirs"] = _ratio(server, entrant, scenario, "rate_per_s")
    row["by_cpu"] = _ratio(server, entrant, scenario, "rate_per_cpu_s")
    row["p99_ratio"] = _ratio(server, entrant, scenario, "p99_ms")
    row["streams/theirs"] = _ratio(streams, entrant, scenario, "rate_per_s")
    row["streams_by_cpu"] = _ratio(streams, entrant, scenario, "rate_per_cpu_s")
    row["streams_p99_ratio"] = _ratio(streams, entrant, scenario, "p99_ms")
    row["engine/theirs"] = _ratio(engine, entrant, scenario, "rate_per_s")
    row["engine_by_cpu"] = _ratio(engine, entrant, scenario, "rate_per_cpu_s")
    if entrant.kind.kind == "server" and scenario == STREAMING:
        row["holds"] = row["ours/theirs"] >= TIMES_FASTER and row["p99_ratio"] <= 1.0
        row["streams_hold"] = row["streams/theirs"] >= TIMES_FASTER and row["streams_p99_ratio"] <= 1.0
    return row


def _ratio(ours: Entrant, theirs: Entrant, scenario: str, figure: str) -> float:
    pairs = zip(ours.rounds[scenario], theirs.rounds[scenario], strict=True)
    return statistics.median(our[figure] / their[figure] if their[figure] else math.inf for our, their in pairs)
