"""`heliotrope bench migration`: what users lose when the model under them changes.

Two snapshots of one data set are trained: one of a text model, the other of one that reads texts otherwise (fewer
layers), with another dimension, seed and half-lives. Users live on the first through the engine of the server, with a
ring so small that most of their events are folded. Then the stored profile is read by an engine of the second snapshot,
as after a swap, and its next positives are ranked beside those of a user who has lived on the second snapshot from the
first event.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.dataset import TIMED, Dataset, load
from heliotrope_bench.engine_system import EngineSystem, started_engine
from heliotrope_bench.errors import BenchError
from heliotrope_bench.holdout import Holdout, first_sights
from heliotrope_bench.interval import Bootstrap
from heliotrope_bench.job import run_job
from heliotrope_bench.ranking import CUT_OFF, DEEPEST, MEASURES, TargetRank, rank_in_list, values
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.shallow_model import shallow_model
from heliotrope_bench.snapshot_job import (
    MODEL_PACKAGE,
    embedding_cache,
    export_model,
    write_catalogue,
    write_train_events,
)
from heliotrope_bench.system import Served, replay
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.profile_codec import decode_profile, encode_profile
from heliotrope_server.settings import EngineSettings

DAY_S = 86_400.0
OLD = TrainingSettings(dimension=48, seed=1)
NEW = TrainingSettings(dimension=64, text_axes=96, half_lives_s=(3_600.0, 120 * DAY_S))
"""What the snapshots are trained with. Half-lives are where learning starts."""
NEXT = 10
"""Positives of each user that are asked for, all at the moment of the first of them."""
REBUILT, MIGRATED, FORGOTTEN = "rebuilt from the full log", "migrated", "ring only"
COLUMNS = {
    "users": "",
    "state": "",
    "targets": ",d",
    "folded_share": ".0%",
    "hr@10": ".4f",
    "hr@10_ratio": ".3f",
    "ndcg@10": ".4f",
    "ndcg@10_ratio": ".3f",
    "ndcg@10_low": ".3f",
    "ndcg@10_high": ".3f",
    "overlap@10": ".3f",
}


class MigrationOptions(BaseSettings):
    """Moves users from one model to another and measures what they are recommended before and after."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench migration", cli_kebab_case=True, cli_hide_none_type=True
    )

    dataset: str = Field("movielens-small", description=f"one of {', '.join(TIMED)}")
    ring_size: Annotated[int, Field(ge=8, description="events that a profile keeps one by one")] = 16
    epochs: Annotated[int | None, Field(ge=1, description="of training, at most")] = None
    model: Path | None = Field(None, description="text model of the old snapshot; exported into WORK when not given")
    new_model: Path | None = Field(None, description="that of the new one; the first layers of the other by default")
    work: Path = Field(Path(".bench"), description="where models and embeddings are kept between runs")
    data: Path | None = Field(None, description="folder of the data sets, in place of HELIOTROPE_DATA")
    out: Path = Field(Path("migration.json"), description="raw results")


def run(options: MigrationOptions, arguments: Sequence[str], console: Console) -> None:
    """Trains, lives, migrates and asks; raises a BenchError when a step fails."""
    if options.dataset not in TIMED:
        raise BenchError(f"there is no timed data set {options.dataset!r}; there are {', '.join(TIMED)}")
    holdout = next_positives(load(options.dataset, options.data))
    model = options.model or export_model(options.work)
    new_model = options.new_model or shallow_model(options.work, MODEL_PACKAGE)
    with tempfile.TemporaryDirectory(prefix="heliotrope-migration-") as name:
        folder = Path(name)
        stores = []
        for settings, texts in ((OLD, model), (NEW, new_model)):
            stores.append(trained_store(holdout, folder / f"d{settings.dimension}", settings, texts, options))
        rows = measure(holdout, stores[0], stores[1], folder, options.ring_size)
    write_report(
        options.out,
        command=["bench", "migration", *arguments],
        settings={**options.model_dump(mode="json"), "data": holdout.dataset.facts()},
        results=rows,
    )
    print_table(console, f"{options.dataset}, a ring of {options.ring_size} events", rows, COLUMNS)
    console.print(f"{options.out}")


def next_positives(dataset: Dataset, count: int = NEXT) -> Holdout:
    """Targets are the last `count` positives of each user who has as many, of items that the user had not seen; what
    comes before the first of them is history, and the rest of the user's events is dropped.
    """
    able = np.flatnonzero(first_sights(dataset, np.arange(len(dataset))) & dataset.positive)
    by_user = able[np.argsort(dataset.user[able], kind="stable")]
    ends = np.cumsum(np.bincount(dataset.user[able], minlength=len(dataset.user_ids)))
    targets, limit = [], np.full(len(dataset.user_ids), len(dataset))
    for user, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        if end - start >= count:
            targets.append(by_user[end - count : end])
            limit[user] = by_user[end - count]
    events = np.arange(len(dataset))
    return Holdout(dataset, np.sort(np.concatenate(targets)), events[events < limit[dataset.user]])


def trained_store(
    holdout: Holdout, folder: Path, settings: TrainingSettings, model: Path, options: MigrationOptions
) -> Path:
    """A store with one snapshot that was trained on the train events."""
    folder.mkdir(parents=True)
    write_catalogue(holdout.dataset, folder / "catalogue.csv")
    write_train_events(holdout, folder / "events.csv")
    (folder / "settings.json").write_text(settings.model_dump_json())
    sources = [
        *("--catalogue", str(folder / "catalogue.csv"), "--events", str(folder / "events.csv")),
        *("--model", str(model), "--cache", str(embedding_cache(options.work))),
        *("--positive-rating", str(min(holdout.dataset.positive_from, 10.0))),
    ]
    limit = [] if options.epochs is None else ["--epochs", str(options.epochs)]
    weights = str(folder / "weights")
    run_job(["train", *sources, "--settings", str(folder / "settings.json"), *limit, "--out", weights])
    run_job(["build", *sources, "--weights", weights, "--out", str(folder / "snapshots")])
    return folder / "snapshots"


def measure(holdout: Holdout, old: Path, new: Path, folder: Path, ring_size: int) -> list[dict[str, Any]]:
    """A row for each state of all users with folded events, and of the half of them of whom the most is folded."""
    data = holdout.dataset
    ranks: dict[str, list[TargetRank]] = {REBUILT: [], MIGRATED: [], FORGOTTEN: []}
    overlaps: dict[str, list[float]] = {state: [] for state in ranks}
    users, shares = [], []
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        engines = []
        for place, store in enumerate((old, new)):
            settings = EngineSettings(checkpoint_interval_s=86_400.0, ring_size=ring_size)
            engine = runner.run(started_engine(store, folder / f"data-{place}", settings, Embedder(None)))
            stack.callback(_stop, runner, engine)
            engines.append(engine)
        before, after = engines
        map_error = after.catalogue.succeed(before.catalogue)
        if map_error is None:
            raise BenchError("the snapshots share fewer items than would determine a map")
        systems = [EngineSystem(data, engine, runner) for engine in engines]
        moved = _Moved(before, after)
        by_user = {user: holdout.targets[holdout.users == user] for user in np.unique(holdout.users).tolist()}
        firsts = replace(holdout, targets=np.sort([targets[0] for targets in by_user.values()]))
        for first, rebuilt in zip(firsts.targets.tolist(), replay(firsts, _Both(systems), DEEPEST), strict=True):
            user = int(data.user[first])
            user_id, time_s = data.user_ids[user], float(data.time[first])
            if not moved.is_folded(user_id):
                continue
            share = after.profile(user_id).folded_share(after.catalogue.parameters)
            answers = {REBUILT: rebuilt}
            for state in (MIGRATED, FORGOTTEN):
                moved.move(user_id, keep_folded=state == MIGRATED)
                answers[state] = systems[1].ask(user_id, time_s, DEEPEST)
            best = set(rebuilt.item_ids[:CUT_OFF])
            for target in by_user[user].tolist():
                users.append(user)
                shares.append(share)
                for state, answer in answers.items():
                    item_id = data.items[data.item[target]].item_id
                    ranks[state].append(rank_in_list(answer.item_ids, answer.scores, item_id))
                    overlaps[state].append(len(best & set(answer.item_ids[:CUT_OFF])) / CUT_OFF)
    if not users:
        raise BenchError(f"no user of {data.name} has more events than a ring of {ring_size} holds")
    folded = np.array(shares)
    groups = {"with folded events": folded >= 0.0, "most of them folded": folded >= np.median(folded)}
    return [
        {
            **_row(group, state, ranks, chosen, np.array(users), folded),
            "overlap@10": float(np.array(overlaps[state])[chosen].mean()),
            "map_error": map_error,
        }
        for group, chosen in groups.items()
        for state in ranks
    ]


def _stop(runner: asyncio.Runner, engine: Engine) -> None:
    runner.run(engine.stop())


def _row(
    group: str,
    state: str,
    ranks: dict[str, list[TargetRank]],
    chosen: NDArray[np.bool_],
    users: NDArray[np.int64],
    folded: NDArray[np.float64],
) -> dict[str, Any]:
    """Figures of one state of the chosen users, and their ratio to those of rebuilt users, the same users drawn."""
    ours, theirs = values(ranks[state])[chosen], values(ranks[REBUILT])[chosen]
    ratio, low, high = Bootstrap(users[chosen]).ratio(ours, theirs)
    row: dict[str, Any] = {
        "users": group,
        "state": state,
        "user_count": len(np.unique(users[chosen])),
        "targets": int(chosen.sum()),
        "folded_share": float(folded[chosen].mean()),
    }
    for column, name in enumerate(MEASURES):
        row[name] = float(ours[:, column].mean())
        row[f"{name}_ratio"] = float(ratio[column])
        row[f"{name}_low"], row[f"{name}_high"] = float(low[column]), float(high[column])
    return row


class _Both:
    """Records to both systems, asks the newer one."""

    def __init__(self, systems: Sequence[EngineSystem]) -> None:
        self._systems = systems

    def record(self, positions: list[int]) -> None:
        for system in self._systems:
            system.record(positions)

    def declare(self, user_id: str, segments: tuple[str, ...]) -> None:
        for system in self._systems:
            system.declare(user_id, segments)

    def ask(self, user_id: str, time_s: float, count: int) -> Served:
        return self._systems[-1].ask(user_id, time_s, count)


class _Moved:
    """Users on their way from one engine to the other, as they are stored."""

    def __init__(self, before: Engine, after: Engine) -> None:
        self._before, self._after = before, after

    def is_folded(self, user_id: str) -> bool:
        return self._before.profile(user_id).folded is not None

    def move(self, user_id: str, *, keep_folded: bool) -> None:
        """The profile of the old engine is read by the new one in place of its own."""
        blob = encode_profile(self._before.profile(user_id))
        profile = decode_profile(user_id, blob, self._after.catalogue)
        if not keep_folded:
            profile.folded = None
            profile.rederive(self._after.catalogue)
        self._after.store.adopt(profile)
