"""`heliotrope bench live`: what items that are added while serving cost a question, and how many of the best are found.

Two retrievers of one catalogue are asked in turns: one that scores every live item for every question, and one that
follows the catalogue as a server does and seals them into lists. The truth is exact scoring of the snapshot and of all
that was added, at every tenth of the way.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
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
from heliotrope_server.live_view import live_view
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
    "least_recall": ".4f",
    "us": ",.1f",
    "p99_us": ",.1f",
    "over_exact": ".3f",
    "over_none": ".2f",
}
ADDED_COLUMNS = {"live": ",", "upsert_us": ".1f", "project_us": ".1f", "seal_us": ".1f", "longest_seal_ms": ".2f"}
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
        results, added = _measured(options, data, sizes)
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
    for row in results:
        if row["least_recall"] < RECALL:
            raise BenchError(
                f"with {row['live']:,} live items recall fell to {row['least_recall']:.4f}, below {RECALL}"
            )


def _measured(
    options: LiveOptions, data: LiveData, sizes: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    catalogue = LiveCatalogue(data.snapshot)
    # The first is never told that the catalogue has grown.
    retrievers = [make_retriever(catalogue) for _ in HOW]
    asked = _asked(data, catalogue, options.queries)
    results: list[dict[str, Any]] = []
    added: list[dict[str, Any]] = []
    begin = 0
    for size in sizes:
        least, times = 1.0, _Times()
        for start in range(begin, size, options.at_once):
            end = min(start + options.at_once, size)
            times.add(catalogue, retrievers[1], data, start, end)
            stage = (size - begin) // LOOKS
            if stage and (end - begin) // stage > (start - begin) // stage:
                least = min(least, _recall(catalogue, retrievers[1], asked))
        if size > begin:
            added.append({"live": size, **times.per_item(size - begin)})
        begin = size
        rows = _timed(options, catalogue, retrievers, asked)
        for row in rows:
            row["least_recall"] = min(least, row["recall"]) if row["delta"] == "sealed" else row["recall"]
            none = next((old for old in results if (old["delta"], old["mode"]) == (row["delta"], row["mode"])), row)
            row["over_none"] = row["us"] / none["us"]
        results += rows
    return results, added


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


def _timed(
    options: LiveOptions, catalogue: LiveCatalogue, retrievers: Sequence[Retriever], asked: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """A result for either retriever and mode."""
    results: list[dict[str, Any]] = []
    passes: list[Callable[[], list[float]]] = []
    live = live_view(catalogue, np.zeros(catalogue.size))
    for how, retriever in zip(HOW, retrievers, strict=True):
        found = _recall(catalogue, retriever, asked)
        for mode, size in zip(MODES, (1, BATCH), strict=True):
            batches = [
                [Query(vector, K, _NONE_EXCLUDED) for vector in asked[start : start + size]]
                for start in range(0, len(asked), size)
            ]
            passes.append(lambda retriever=retriever, batches=batches: _pass(retriever, live, batches))  # type: ignore[misc]
            row: dict[str, Any] = {"live": len(catalogue.delta), "delta": how, "mode": mode, "recall": found}
            results.append({**row, "all_us": [], "all_p99_us": []})
    for turn in range(options.rounds):
        # Another order in every round: nobody always runs after the same neighbour.
        for place in np.random.default_rng(turn).permutation(len(passes)):
            calls = passes[place]()
            results[place]["all_us"].append(sum(calls) * 1e6 / len(asked))
            results[place]["all_p99_us"].append(float(np.percentile(calls, 99)) * 1e6)
    for row in results:
        exact: list[float] = results[MODES.index(row["mode"])]["all_us"]
        row["us"] = statistics.median(row["all_us"])
        row["p99_us"] = statistics.median(row["all_p99_us"])
        # Round by round: a machine whose speed drifts drifts for both.
        row["over_exact"] = statistics.median(np.array(row["all_us"]) / np.array(exact))
    return results


def _pass(retriever: Retriever, live: Any, batches: Sequence[Sequence[Query]]) -> list[float]:
    """CPU seconds of each call."""
    calls = []
    for batch in batches:
        began = time.thread_time()
        retriever.rank(batch, live)
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


def _asked(data: LiveData, catalogue: LiveCatalogue, count: int) -> NDArray[np.float32]:
    """Queries (count, d) of users who like items of the snapshot and those that are still to come."""
    coming = LiveCatalogue(data.snapshot)
    for entry in data.entries:
        coming.upsert(entry)
    return served_queries(
        np.concatenate([catalogue.base_vectors, coming.delta_vectors]),
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
