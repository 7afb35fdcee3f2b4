"""`heliotrope bench filters`: what a filter costs, and what of the best it lets find, by the share that it admits.

Filters on a number that has nothing to do with taste, and on one that keeps or drops whole neighbourhoods, beside no
filter, in turns, called as the server calls them: the filter's rows, kept after the first time, and the retriever.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.ann.attributed_store import CHANCE, TASTE, attributed_store
from heliotrope_bench.ann.contender import K
from heliotrope_bench.ann.frontier import recall
from heliotrope_bench.ann.measurement import BATCH, MODES
from heliotrope_bench.ann.ours import asked_rows, stored_rows
from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.allowed_rows import RowFilters
from heliotrope_server.item_filter import ItemFilter, NumberIn
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.retriever import make_retriever
from heliotrope_server.scoring import Query

RECALL = 0.97
SEED = 7
"""Of the queries; the build measures with others."""
COLUMNS = {
    "filter": "",
    "share": ".1%",
    "rows": ",",
    "mode": "",
    "recall": ".4f",
    "us": ",.1f",
    "over_unfiltered": ".2f",
    "first_ms": ",.1f",
}
_NONE_EXCLUDED = np.empty(0, dtype=np.int64)


class FiltersOptions(BaseSettings):
    """Measures filtered requests beside unfiltered ones, by the share of the items that the filter admits."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench filters", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path | None = Field(None, description="a snapshot store to copy; a synthetic catalogue unless given")
    items: Annotated[int, Field(ge=100, description="items of the synthetic catalogue")] = 300_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of its vectors")] = 63
    shares: str = Field("1,0.5,0.1,0.01,0.001", description="shares of the items that filters admit, by commas")
    queries: Annotated[int, Field(ge=1, description="queries of a pass")] = 200
    rounds: Annotated[int, Field(ge=1, description="timed passes of every filter, in turns")] = 5
    threads: Annotated[int, Field(ge=1)] = Field(os.cpu_count() or 1, description="for building; searches take one")
    work: Path = Field(Path(".bench"), description="where snapshots are kept between runs")
    out: Path = Field(Path("filters.json"), description="raw results")


class _Case(NamedTuple):
    """One filter and how often it is asked; `on` names its number."""

    on: str
    share: float
    filter: ItemFilter | None


def run(options: FiltersOptions, arguments: Sequence[str], console: Console) -> None:
    """Measures every share; raises a BenchError for shares that can't be or a recall below RECALL."""
    cases = [_Case("none", 1.0, None)]
    for share in _shares(options.shares):
        cases += [_Case(on, share, ItemFilter((NumberIn(on, most=share),))) for on in (CHANCE, TASTE)]
    work = options.work / "filters"
    if options.snapshots is None:
        source = synthetic_store(options.work / "synthetic", options.items, options.dimension, threads=options.threads)
    else:
        source = options.snapshots
    original = SnapshotStore(source).open()
    with threadpoolctl.threadpool_limits(1):
        results = _measured(options, work / original.version, source, cases)
    write_report(
        options.out,
        command=["bench", "filters", *arguments],
        settings={**options.model_dump(mode="json"), "recall": RECALL, "served_items": len(original)},
        results=results,
    )
    print_table(console, f"{len(original):,} items, one thread", results, COLUMNS)
    console.print(f"{options.out}")
    for row in results:
        if row["recall"] < RECALL:
            raise BenchError(
                f"a filter on {row['filter']} that admits {row['share']:.1%} is served with recall "
                f"{row['recall']:.4f}, below {RECALL}"
            )


def _measured(options: FiltersOptions, store: Path, source: Path, cases: Sequence[_Case]) -> list[dict[str, Any]]:
    snapshot = SnapshotStore(attributed_store(SnapshotStore(source).open(), store)).open()
    catalogue = LiveCatalogue(snapshot)
    filters, retriever = RowFilters(catalogue), make_retriever(catalogue)
    live = live_view(catalogue, np.zeros(catalogue.size))
    asked, stored = asked_rows(snapshot, options.queries, SEED), stored_rows(snapshot)
    vectors = np.ascontiguousarray(asked[:, : catalogue.dimension])

    def answered(case: _Case, size: int) -> NDArray[np.int64]:
        """(queries, K) rows, -1 where there are no more, of `size` queries at a time."""
        found = np.full((len(vectors), K), -1, dtype=np.int64)
        for start in range(0, len(vectors), size):
            queries = [
                Query(vector, K, _NONE_EXCLUDED, None, filters.allowed(case.filter, 0.0))
                for vector in vectors[start : start + size]
            ]
            for place, ranking in enumerate(retriever.rank(queries, live), start):
                found[place, : len(ranking.rows)] = ranking.rows
        return found

    results: list[dict[str, Any]] = []
    passes: list[Callable[[], NDArray[np.int64]]] = []
    for case in cases:
        started = time.process_time()
        allowed = filters.allowed(case.filter, 0.0)
        retriever.rank([Query(vectors[0], K, _NONE_EXCLUDED, None, allowed)], live)
        first_ms = (time.process_time() - started) * 1e3
        mask = np.ones(catalogue.size, dtype=np.bool_) if allowed is None else allowed.mask
        for mode, size in zip(MODES, (1, BATCH), strict=True):
            passes.append(lambda case=case, size=size: answered(case, size))  # type: ignore[misc]
            results.append(
                {
                    "filter": case.on,
                    "share": case.share,
                    "rows": int(mask.sum()),
                    "mode": mode,
                    "recall": _recall(asked, stored[mask], np.flatnonzero(mask), passes[-1]()),
                    "first_ms": first_ms,
                    "all_us": [],
                }
            )
    for turn in range(options.rounds):
        # Another order in every round: nobody always runs after the same neighbour.
        for place in np.random.default_rng(turn).permutation(len(passes)):
            cpu = time.process_time()
            passes[place]()
            results[place]["all_us"].append((time.process_time() - cpu) * 1e6 / len(vectors))
    for result in results:
        result["us"] = statistics.median(result["all_us"])
        # Round by round: a machine whose speed drifts drifts for both.
        plain = results[MODES.index(result["mode"])]["all_us"]
        result["over_unfiltered"] = statistics.median(np.array(result["all_us"]) / np.array(plain))
    return results


def _recall(
    asked: NDArray[np.float32], stored: NDArray[np.float32], rows: NDArray[np.int64], found: NDArray[np.int64]
) -> float:
    """recall@10 against exact scores of the admitted rows (m,); where there are fewer, against all of them."""
    k = min(K, len(rows))
    places = np.where(found >= 0, np.searchsorted(rows, found), -1)[:, :k]
    shares = [
        recall(asked[start : start + BATCH] @ stored.T, places[start : start + BATCH], k)
        * len(asked[start : start + BATCH])
        for start in range(0, len(asked), BATCH)
    ]
    return sum(shares) / len(asked)


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BenchError(f"--shares {text!r} are not numbers by commas") from error
    for share in shares:
        if not 0.0 < share <= 1.0:
            raise BenchError(f"--shares holds {share:g}; a share is above 0 and at most 1")
    return shares
