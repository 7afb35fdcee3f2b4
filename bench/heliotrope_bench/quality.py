"""`heliotrope bench quality`: the replay evaluation of the served system, beside what it has to beat.

The system under test is the one that a user runs: the jobs make the snapshot, and the engine of the server (in this
process, or behind gRPC) takes every event and answers every question in the global order of time.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from heliotrope_bench import competitors as rivals
from heliotrope_bench.calibration import MAX_TARGETS, Duels
from heliotrope_bench.competitors import Competitor, Outcome
from heliotrope_bench.dataset import NAMES, Dataset, load
from heliotrope_bench.engine_system import EngineSystem, engine_system
from heliotrope_bench.errors import BenchError
from heliotrope_bench.holdout import Holdout
from heliotrope_bench.list_quality import list_figures
from heliotrope_bench.protocol import PROTOCOLS, Protocol
from heliotrope_bench.ranking import CUT_OFF, DEEPEST, TargetRank, place_in_list, rank_in_list
from heliotrope_bench.report import print_table
from heliotrope_bench.result import OURS, Result, comparable, read_results, write_results
from heliotrope_bench.snapshot_job import (
    ABLATIONS,
    TRIALS,
    build_snapshot,
    embedding_cache,
    export_model,
    parameters_of,
)
from heliotrope_bench.summary import COLUMNS, rows_of
from heliotrope_bench.system import System, replay, server_system
from heliotrope_bench.text_features import text_features

VALIDATION_TARGETS = 2_500
"""Targets on which a competitor's settings are compared."""

DIVERSE = 100
"""Places of a list with rules, so recall behind them is not measured."""

Through = Literal["engine", "grpc"]
Figures = dict[str, float | None]
Measured = dict[str, tuple[Outcome, Figures]]
"""What came of each variant of a protocol, and figures beyond the ranks."""


class QualityOptions(BaseSettings):
    """Replays real data sets through the served system and compares its recommendations with other models."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_prog_name="heliotrope bench quality",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    datasets: CliPositionalArg[list[str]] = Field([], description=f"any of {', '.join(NAMES)}")
    all: bool = Field(False, description="all data sets")
    protocols: list[str] = Field(
        [protocol.name for protocol in PROTOCOLS], description="which protocols; those of time skip data without times"
    )
    heliotrope: bool = Field(True, description="measure the system itself")
    ablations: list[str] = Field([], description="parts to leave out one by one, or `all`")
    competitors: list[str] = Field(
        [], description="models to compare with: names, or `none`; default: those of each protocol"
    )
    trials: int = Field(TRIALS, ge=1, description="settings of the system that are tried on each validation part")
    diversity: float = Field(0.0, ge=0, le=1, description="how much the items of a list should differ, as for `serve`")
    through: Through = Field("engine", description="the engine in this process, or a server over gRPC")
    results: Path = Field(Path(".bench/quality"), description="folder of the raw results, one JSON file a model")
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    model: Path | None = Field(None, description="model folder; exported into WORK when not given")
    work: Path = Field(Path(".bench"), description="where the model and the embeddings are kept between runs")

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        if not self.all and not self.datasets:
            raise ValueError(f"name a data set ({', '.join(NAMES)}) or give --all")
        for what, given, known in (
            ("data set", self.datasets, NAMES),
            ("protocol", self.protocols, tuple(protocol.name for protocol in PROTOCOLS)),
            ("competitor", self.competitors, (*rivals.NAMES, "none")),
            ("ablation", self.ablations, (*ABLATIONS, "all")),
        ):
            for name in given:
                if name not in known:
                    raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}")
        return self


def run(options: QualityOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs the evaluation; raises a BenchError when a step fails."""
    names = list(NAMES) if options.all else options.datasets
    model = options.model or export_model(options.work)
    for name in names:
        data = load(name, options.data)
        skipped = f", {data.skipped:,} of unknown items skipped" if data.skipped else ""
        console.print(
            f"{data.name}: {len(data.items):,} items, {len(data):,} events of {len(data.user_ids):,} users{skipped}"
        )
        features = text_features(data, model, embedding_cache(options.work))
        for protocol in PROTOCOLS:
            if protocol.name not in options.protocols:
                continue
            if protocol.needs_times and not data.timed:
                console.print(f"{protocol.title}: skipped, {data.name} has no times", style="dim")
                continue
            _run_protocol(options, arguments, console, protocol, data, features, model)


def _run_protocol(
    options: QualityOptions,
    arguments: Sequence[str],
    console: Console,
    protocol: Protocol,
    data: Dataset,
    features: NDArray[np.float32],
    model: Path,
) -> None:
    holdout = protocol.cut(data, None)
    variants = protocol.variants(holdout)
    console.print(f"{protocol.title}: {len(holdout.targets):,} targets, {len(holdout.train):,} train events")

    def keep(name: str, outcomes: Measured) -> None:
        results = [
            _result(protocol, variant, name, variants[variant], outcome, figures, features)
            for variant, (outcome, figures) in outcomes.items()
        ]
        settings = {**options.model_dump(mode="json"), "data": data.facts()}
        write_results(options.results, results, command=["bench", "quality", *arguments], settings=settings)

    wanted = list(ABLATIONS) if "all" in options.ablations else options.ablations
    for ablation in [*([None] if options.heliotrope else []), *wanted]:
        name = "-".join([OURS, *([ablation] if ablation else []), *_diverse(options.diversity)])
        with tempfile.TemporaryDirectory(prefix="heliotrope-quality-") as folder:
            changes = None if ablation is None else ABLATIONS[ablation]
            store = build_snapshot(holdout, Path(folder), model, options.work, ablation=changes, trials=options.trials)
            keep(name, measure_system(variants, store, model, options, console))
    names = options.competitors or list(protocol.competitors)
    known = rivals.competitors(features)
    with _progress(console) as progress:
        task = progress.add_task("competitors", total=len(names))
        validation = protocol.validation(holdout, count=VALIDATION_TARGETS)
        for name in names:
            if name != "none":
                progress.update(task, description=name)
                if name not in known:
                    raise BenchError(f"{name} needs torch: pip install 'heliotrope[bench,train]'")
                keep(name, measure_competitor(known[name], variants, validation))
            progress.advance(task)
    groups = comparable(read_results(options.results / data.name / protocol.name))
    for (_, _, variant), results in groups.items():
        print_table(console, " - ".join(filter(None, (data.name, protocol.title, variant))), rows_of(results), COLUMNS)


def measure_competitor(competitor: Competitor, variants: dict[str, Holdout], validation: Holdout) -> Measured:
    """Tunes on validation, then scores each variant once."""
    settings = rivals.tune(competitor, validation)
    nothing: Figures = {}
    return {variant: (rivals.evaluate(competitor, holdout, settings), nothing) for variant, holdout in variants.items()}


def measure_system(
    variants: dict[str, Holdout], snapshots: Path, model: Path, options: QualityOptions, console: Console
) -> Measured:
    """Replays each variant through a fresh system; through the engine, also its calibration."""
    outcomes: Measured = {}
    for variant, holdout in variants.items():
        started = time.perf_counter()
        with (
            started_system(holdout, snapshots, model, options.through, diversity=options.diversity) as system,
            _progress(console) as progress,
        ):
            task = progress.add_task(f"replay {variant}", total=len(holdout.targets))
            advance = partial(progress.advance, task)
            ranks, top, figures = ask_all(holdout, system, advance, diverse=options.diversity > 0.0)
        seconds = time.perf_counter() - started
        outcomes[variant] = (Outcome(ranks, top, parameters_of(snapshots), options.trials, seconds), figures)
    return outcomes


@contextmanager
def started_system(
    holdout: Holdout, snapshots: Path, model: Path, through: Through, *, diversity: float = 0.0
) -> Iterator[System]:
    """A fresh system that has recorded nothing."""
    with tempfile.TemporaryDirectory(prefix="heliotrope-replay-") as folder:
        if through == "grpc":
            with server_system(holdout.dataset, snapshots, Path(folder), model, diversity=diversity) as server:
                yield server
        else:
            with engine_system(holdout.dataset, snapshots, Path(folder), diversity=diversity) as engine:
                yield engine


def ask_all(
    holdout: Holdout, system: System, advance: Callable[[], None] = lambda: None, *, diverse: bool = False
) -> tuple[list[TargetRank], NDArray[np.int64], Figures]:
    """Ranks, best ten item rows (targets, 10) and calibration figures of a replay.

    Lists that are made `diverse` are shorter, in an order of their own, and have no figures of calibration.
    """
    data = holdout.dataset
    rows = {item.item_id: row for row, item in enumerate(data.items)}
    generator = np.random.default_rng(0)
    checked = set(generator.permutation(len(holdout.targets))[:MAX_TARGETS].tolist())
    duels, ranks = Duels(), []
    top = np.full((len(holdout.targets), CUT_OFF), -1)
    for place, served in enumerate(replay(holdout, system, DIVERSE if diverse else DEEPEST, advance=advance)):
        target = int(holdout.targets[place])
        item = int(data.item[target])
        item_id = data.items[item].item_id
        if diverse:
            ranks.append(place_in_list(served.item_ids, item_id))
        else:
            ranks.append(rank_in_list(served.item_ids, served.scores, item_id))
        best = [rows[each] for each in served.item_ids[:CUT_OFF]]
        top[place, : len(best)] = best
        if place in checked and not diverse and isinstance(system, EngineSystem):
            user_id, time_s = data.user_ids[data.user[target]], float(data.time[target])
            duels.add(*system.ask_for_all(user_id, time_s), item, generator)
    return ranks, top, dict(duels.figures()) if duels.labels else {}


def _diverse(diversity: float) -> list[str]:
    return [f"diversity-{diversity:g}"] if diversity else []


def _result(
    protocol: Protocol,
    variant: str,
    name: str,
    holdout: Holdout,
    outcome: Outcome,
    figures: Figures,
    features: NDArray[np.float32],
) -> Result:
    return Result(
        dataset=holdout.dataset.name,
        protocol=protocol.name,
        variant=variant,
        model=name,
        fingerprint=holdout.fingerprint,
        users=holdout.users.tolist(),
        above=[rank.above for rank in outcome.ranks],
        tied=[rank.tied for rank in outcome.ranks],
        figures={**list_figures(outcome.top, holdout, features), **figures},
        settings=outcome.settings,
        trials=outcome.trials,
        seconds=outcome.seconds,
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
