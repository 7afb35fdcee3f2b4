"""`heliotrope bench swap`: how long the event loop of a shard stands when another snapshot is served.

One engine in this process is asked one question after the other while a snapshot is prepared beside the served one and
then swapped in. The same swap without preparation, all of it on the event loop up to the first answer, is timed in the
same run. Beside the time stands the processor's time of the loop's thread, which says the same on a busy machine.
"""

import asyncio
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.engine_system import started_engine
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from heliotrope_server.activation import Activation
from heliotrope_server.answerer import Question
from heliotrope_server.catalogue_log import encode_upsert
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.record_log import RecordLog
from heliotrope_server.settings import EngineSettings
from heliotrope_server.shard import SWITCH_INTERVAL_S

COLUMNS = {
    "items": ",",
    "live_items": ",",
    "unprepared_ms": ",.0f",
    "unprepared_cpu_ms": ",.0f",
    "swap_ms": ".1f",
    "swap_cpu_ms": ".1f",
    "prepare_s": ".1f",
    "p99_ms": ".2f",
    "prepare_p99_ms": ".2f",
    "own_mib": ",.0f",
    "peak_mib": ",.0f",
}
_GROUP = 1_000
_SETTLE_S = 3.0
_SAMPLE_S = 0.02


class SwapOptions(BaseSettings):
    """Measures what a swap of snapshots costs a shard that is asked all the while."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench swap", cli_kebab_case=True, cli_hide_none_type=True
    )

    items: Annotated[int, Field(ge=10, description="items of the synthetic snapshots")] = 1_000_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of their vectors")] = 64
    live_items: Annotated[int, Field(ge=1, description="items that were added while serving")] = 100_000
    users: Annotated[int, Field(ge=1, description="users with events")] = 2_000
    events_per_user: Annotated[int, Field(ge=1)] = 100
    rounds: Annotated[int, Field(ge=1, description="swaps of each kind")] = 3
    seed: int = 0
    work: Path = Field(Path(".bench"), description="where the synthetic snapshots are kept between runs")
    out: Path = Field(Path("swap.json"), description="raw results")


def run(options: SwapOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all rounds and writes the report."""
    store = synthetic_store(options.work / "synthetic", options.items, options.dimension)
    versions = two_versions(SnapshotStore(str(store)))
    with tempfile.TemporaryDirectory(prefix="heliotrope-swap-") as folder:
        row = asyncio.run(_measure(options, str(store), versions, Path(folder)))
    write_report(
        options.out, command=["bench", "swap", *arguments], settings=options.model_dump(mode="json"), results=[row]
    )
    print_table(console, "swap of snapshots", [row], COLUMNS)


def two_versions(store: SnapshotStore) -> tuple[str, str]:
    """The version of a synthetic store and a second one like it, made on first use; the first is current."""
    first, *others = reversed(store.versions())
    if not others:
        old = store.open(first, verify=False)
        draft = Path(store.path).parent / f".draft-{first}"
        write_snapshot(
            draft,
            items=[CatalogItem(item_id, f"Item {row}") for row, item_id in enumerate(old.item_ids)],
            vectors=old.vectors,
            bias=old.bias,
            prior=np.asarray(old.prior) + np.float32(0.01),
            scoring_matrices=old.scoring_matrices,
            parameters=old.parameters,
            index=old.index(),
            quality=old.manifest.quality,
        )
        others = [store.publish(draft)]
    store.activate(first)
    return first, others[0]


async def _measure(options: SwapOptions, store: str, versions: tuple[str, str], folder: Path) -> dict[str, Any]:
    await _write_live_items(options, folder / "catalogue")
    settings = EngineSettings(checkpoint_interval_s=86_400.0)
    engine = await started_engine(Path(store), folder, settings, Embedder(None))
    try:
        await _record(options, engine)
        return await _swap(options, engine, SnapshotStore(store), versions)
    finally:
        await engine.stop()


async def _swap(
    options: SwapOptions, engine: Engine, store: SnapshotStore, versions: tuple[str, str]
) -> dict[str, Any]:
    # As in a shard; and what was loaded lives for ever there too.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    activation = Activation(engine, store)
    rounds, unprepared, unprepared_cpu = [], [], []
    for number in range(options.rounds):
        asker = _Asker(engine, options)
        await asyncio.sleep(_SETTLE_S)
        await asker.take()
        await asyncio.sleep(_SETTLE_S)
        steady = await asker.take()
        own = psutil.Process().memory_info()
        with _peak() as peak:
            started = time.perf_counter()
            await activation.prepare(versions[1 - number % 2])
            prepare_s = time.perf_counter() - started
            during = await asker.take()
            started, worked = time.perf_counter(), time.thread_time()
            await activation.commit(versions[1 - number % 2])
            swap_cpu_ms = 1e3 * (time.thread_time() - worked)
            swap_ms = 1e3 * (time.perf_counter() - started)
            await asyncio.sleep(_SETTLE_S)
        after = await asker.take()
        await asker.stop()
        rounds.append(
            {
                "swap_ms": swap_ms,
                "swap_cpu_ms": swap_cpu_ms,
                "prepare_s": prepare_s,
                "p50_ms": float(np.median(steady)),
                "p99_ms": float(np.quantile(steady, 0.99)),
                "prepare_p99_ms": float(np.quantile(during, 0.99)),
                "prepare_longest_ms": max(during),
                "after_p99_ms": float(np.quantile(after, 0.99)),
                "longest_ms": max(after),
                "own_mib": (own.rss - own.shared) / 2**20,
                "peak_mib": peak[0] / 2**20,
            }
        )
    for number in range(options.rounds):
        catalogue = LiveCatalogue(store.open(versions[number % 2], verify=False))
        started, worked = time.perf_counter(), time.thread_time()
        engine.adopt(catalogue)
        # What is made at the first use makes the first question wait.
        await engine.recommend(Question("nobody", 10))
        unprepared_cpu.append(1e3 * (time.thread_time() - worked))
        unprepared.append(1e3 * (time.perf_counter() - started))
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {
        "items": options.items,
        "live_items": options.live_items,
        "unprepared_ms": statistics.median(unprepared),
        "unprepared_cpu_ms": statistics.median(unprepared_cpu),
        **medians,
        "rounds": rounds,
        "unprepared_rounds_ms": unprepared,
    }


class _Asker:
    """Asks for recommendations, one after the other, and notes how long each took."""

    def __init__(self, engine: Engine, options: SwapOptions) -> None:
        self._engine = engine
        self._users = options.users
        self._random = np.random.default_rng(options.seed)
        self._took: list[float] = []
        self._task = asyncio.create_task(self._ask_for_ever())

    async def take(self) -> list[float]:
        """Milliseconds of the answers since the last call, one at least."""
        while not self._took:
            await asyncio.sleep(0)
        took, self._took = self._took, []
        return took

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _ask_for_ever(self) -> None:
        while True:
            started = time.perf_counter()
            await self._engine.recommend(Question(f"u{self._random.integers(self._users)}", 10))
            self._took.append(1e3 * (time.perf_counter() - started))
            await asyncio.sleep(0.001)


async def _write_live_items(options: SwapOptions, folder: Path) -> None:
    generator, log = np.random.default_rng(options.seed), RecordLog(folder)
    for start in range(0, options.live_items, _GROUP):
        texts = generator.normal(size=(_GROUP, options.dimension)).astype(np.float32)
        records = [
            encode_upsert(
                DeltaItem(CatalogItem(f"new{start + place}", f"New {place}"), text, None, 0.0, "", "none", time.time())
            )
            for place, text in enumerate(texts[: options.live_items - start])
        ]
        await log.append(records, lambda lsn: lsn)
    log.close()


async def _record(options: SwapOptions, engine: Engine) -> None:
    generator, now_us = np.random.default_rng(options.seed), round(time.time() * 1e6)
    count = options.users * options.events_per_user
    items = generator.integers(options.items, size=count).tolist()
    for start in range(0, count, _GROUP):
        await engine.record(
            [
                UserEvent(f"u{number % options.users}", f"e{number}", EventKind.CLICK, f"i{item}", 1.0, now_us - number)
                for number, item in enumerate(items[start : start + _GROUP], start)
            ]
        )


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The largest resident memory of this process that is no mapped file, in bytes, while the block runs."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        process = psutil.Process(os.getpid())
        while not over.wait(_SAMPLE_S):
            size = process.memory_info()
            peak[0] = max(peak[0], int(size.rss - size.shared))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
