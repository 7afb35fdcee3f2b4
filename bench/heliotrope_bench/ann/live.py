"""`heliotrope bench live`: what items that are added while serving cost a question, and how many of the best are found.

Two retrievers of one catalogue are asked in turns: one that scores every live item for every question, and one that
follows the catalogue as a server does and seals them into lists. The truth is exact scoring of the snapshot and of all
that was added; recall is looked at on the way too.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.ann.contender import K
from heliotrope_bench.ann.frontier import recall
from heliotrope_bench.ann.live_data import Data, LiveData, live_data
from heliotrope_bench.ann.measurement import BATCH, MODES
from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_indexer.ann_index import EXACT_UP_TO, served_queries
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView, live_view
from heliotrope_server.retriever import Retriever, make_retriever
from heliotrope_server.scoring import Query

RECALL = 0.97
LOOKS = 10
"""How often recall is looked at on the way from one size to the next."""
SEED = 7
"""Of the queries; the build measures with others."""
HOW = ("exact", "sealed")
COLUMNS = {
    "live": ",",
    "delta": "",
    "mode": "",
    "recall": ".4f",
    "us": ",.1f",
    "p99_us": ",.1f",
    "over_exact": ".3f",
    "over_none": ".2f",
    "p99_over_none": ".2f",
}
ADDED_COLUMNS = {
    "live": ",",
    "least_recall": ".4f",
    "upsert_us": ".1f",
    "project_us": ".1f",
    "seal_us": ".1f",
    "longest_seal_ms": ".2f",
}
_NONE_EXCLUDED = np.empty(0, dtype=np.int64)


class LiveOptions(BaseSettings):
    """Measures the retriever while items are added to the catalogue that it serves."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench live", cli_kebab_case=True, cli_hide_none_type=True
    )

    data: Data = Field("alike", description="real texts drawn alike, real texts of other kinds, or vectors")
    items: Annotated[int, Field(gt=EXACT_UP_TO, description="items of the snapshot")] = 100_000
    live: str = Field("0,1000,10000,100000", description="items added when it is measured, by commas")
    at_once: Annotated[int, Field(ge=1, description="items of an UpsertItems call")] = 100
    dimension: Annotated[int, Field(ge=4, description="dimensions of the vectors")] = 63
    queries: Annotated[int, Field(ge=1, description="queries of a pass")] = 400
    rounds: Annotated[int, Field(ge=1, description="timed passes of either way, in turns")] = 5
    threads: Annotated[int, Field(ge=1)] = Field(os.cpu_count() or 1, description="for building; searches take one")
    work: Path = Field(Path(".bench"), description="where model, embeddings and snapshots are kept between runs")
    out: Path = Field(Path("live.json"), description="raw results")


def run(options: LiveOptions, arguments: Sequence[str], console: Console) -> None:
    """Measures every size; raises a BenchError for sizes that can't be or a recall below RECALL."""
    sizes = _sizes(options.live)
    data = live_data(options.work, options.data, options.items, sizes[-1], options.dimension, options.threads)
    with threadpoolctl.threadpool_limits(1):
        asked = _asked(data, options.queries)
        results = _timed(data, sizes, asked, options.rounds)
        added = _grown(data, sizes, options.at_once, asked)
    write_report(
        options.out,
        command=["bench", "live", *arguments],
        settings={**options.model_dump(mode="json"), "recall": RECALL, "snapshot": data.snapshot.manifest.quality},
        results=[*results, *added],
    )
    title = f"{options.items:,} items of {options.dimension} dimensions in the snapshot, one thread"
    print_table(console, title, results, COLUMNS)
    print_table(console, "a live item", added, ADDED_COLUMNS)
    console.print(f"{options.out}")
    for row in added:
        if row["least_recall"] < RECALL:
            raise BenchError(
                f"on the way to {row['live']:,} live items recall fell to {row['least_recall']:.4f}, below {RECALL}"
            )


def _grown(data: LiveData, sizes: Sequence[int], at_once: int, asked: NDArray[np.float32]) -> list[dict[str, Any]]:
    """One catalogue grows from size to size: what an item costs, and the least recall that is seen on the way."""
    catalogue = LiveCatalogue(data.snapshot)
    retriever = make_retriever(catalogue)
    added: list[dict[str, Any]] = []
    for begin, size in zip((0, *sizes), sizes, strict=False):
        least, times, stage = 1.0, _Times(), (size - begin) // LOOKS
        for start in range(begin, size, at_once):
            end = min(start + at_once, size)
            times.add(catalogue, retriever, data, start, end)
            if stage and (end - begin) // stage > (start - begin) // stage:
                least = min(least, _recall(catalogue, retriever, asked))
        if size > begin:
            added.append({"live": size, "least_recall": least, **times.per_item(size - begin)})
    return added


class _Times:
    """CPU seconds that additions took."""

    def __init__(self) -> None:
        self._upsert_s = self._project_s = self._seal_s = self._longest_s = 0.0

    def add(self, catalogue: LiveCatalogue, retriever: Retriever, data: LiveData, start: int, end: int) -> None:
        """Adds some entries as Engine.catch_up_catalogue does."""
        began = time.thread_time()
        for entry in data.entries[start:end]:
            catalogue.upsert(entry)
        upserted = time.thread_time()
        retriever.follow()
        sealed = time.thread_time()
        for entry in data.entries[start:end]:
            catalogue.project(entry.pooled[None])
        self._project_s += time.thread_time() - sealed
        self._upsert_s += upserted - began
        self._seal_s += sealed - upserted
        self._longest_s = max(self._longest_s, sealed - upserted)

    def per_item(self, count: int) -> dict[str, float]:
        """Microseconds of an item: `upsert_us` with its projection, which is `project_us`."""
        return {
            "upsert_us": self._upsert_s / count * 1e6,
            "project_us": self._project_s / count * 1e6,
            "seal_us": self._seal_s / count * 1e6,
            "longest_seal_ms": self._longest_s * 1e3,
        }


def _timed(data: LiveData, sizes: Sequence[int], asked: NDArray[np.float32], rounds: int) -> list[dict[str, Any]]:
    """A result for every size, either way and mode, all in turns."""
    results: list[dict[str, Any]] = []
    passes: list[Callable[[], list[float]]] = []
    for size in sizes:
        catalogue = LiveCatalogue(data.snapshot)
        # Both know the catalogue while it is empty, and only the second is told that it has grown.
        retrievers = [make_retriever(catalogue) for _ in HOW]
        for entry in data.entries[:size]:
            catalogue.upsert(entry)
        retrievers[1].follow()
        live = live_view(catalogue, np.zeros(catalogue.size))
        for how, retriever in zip(HOW, retrievers, strict=True):
            found = _recall(catalogue, retriever, asked)
            for mode, count in zip(MODES, (1, BATCH), strict=True):
                passes.append(partial(_pass, retriever, live, asked, count))
                results.append({"live": size, "delta": how, "mode": mode, "recall": found})
    calls: list[list[list[float]]] = []
    for turn in range(rounds):
        # Another order in every round: nobody always runs after the same neighbour.
        order = np.random.default_rng(turn).permutation(len(passes))
        done = {place: passes[place]() for place in order.tolist()}
        calls.append([done[place] for place in range(len(passes))])
    for place, row in enumerate(results):
        row["all_us"] = [sum(of_round[place]) * 1e6 / len(asked) for of_round in calls]
        row["all_p99_us"] = [float(np.percentile(of_round[place], 99)) * 1e6 for of_round in calls]
        row["us"], row["p99_us"] = statistics.median(row["all_us"]), statistics.median(row["all_p99_us"])
    for row in results:
        exact = _like(results, row, live=row["live"], delta=HOW[0])
        none = _like(results, row, live=sizes[0])
        row["over_exact"] = _ratio(row["all_us"], exact["all_us"])
        row["over_none"] = _ratio(row["all_us"], none["all_us"])
        row["p99_over_none"] = _ratio(row["all_p99_us"], none["all_p99_us"])
    return results


def _like(results: Sequence[dict[str, Any]], row: dict[str, Any], **other: Any) -> dict[str, Any]:
    """The result that is like another but for this."""
    wanted = {key: row[key] for key in ("live", "delta", "mode")} | other
    return next(each for each in results if wanted.items() <= each.items())


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Round by round: a machine whose speed drifts drifts for both."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def _pass(retriever: Retriever, live: LiveView, asked: NDArray[np.float32], count: int) -> list[float]:
    """CPU seconds of each call, for `count` queries at a time."""
    calls = []
    for start in range(0, len(asked), count):
        queries = [Query(vector, K, _NONE_EXCLUDED) for vector in asked[start : start + count]]
        began = time.thread_time()
        retriever.rank(queries, live)
        calls.append(time.thread_time() - began)
    return calls


def _recall(catalogue: LiveCatalogue, retriever: Retriever, asked: NDArray[np.float32]) -> float:
    """recall@10 against exact scores of the snapshot and all live items."""
    live = live_view(catalogue, np.zeros(catalogue.size))
    shares = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        rankings = retriever.rank([Query(vector, K, _NONE_EXCLUDED) for vector in batch], live)
        scores = np.concatenate(
            [
                batch @ catalogue.base_vectors.T + catalogue.base_bias,
                batch @ catalogue.delta_vectors.T + catalogue.delta_bias,
            ],
            axis=1,
        )
        shares.append(recall(scores, np.stack([ranking.rows for ranking in rankings]), K) * len(batch))
    return sum(shares) / len(asked)


def _asked(data: LiveData, count: int) -> NDArray[np.float32]:
    """Queries (count, d) of users who like items of the snapshot and those that are still to come."""
    catalogue = LiveCatalogue(data.snapshot)
    for entry in data.entries:
        catalogue.upsert(entry)
    return served_queries(
        np.concatenate([catalogue.base_vectors, catalogue.delta_vectors]),
        np.array(data.snapshot.scoring_matrices),
        catalogue.prior,
        catalogue.parameters.kappas,
        count=count,
        seed=SEED,
    )


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BenchError(f"--live {text!r} are not numbers by commas") from error
    if sizes != sorted(set(sizes)) or sizes[0] < 0:
        raise BenchError(f"--live {text!r} are not growing numbers from 0")
    return sizes
