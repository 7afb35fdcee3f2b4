"""`heliotrope bench growth`: what a request costs as the catalogue grows, at a recall that is kept.

Each size has a synthetic snapshot whose search settings its build chose. Measured are the whole request, which is what
a server does for a Recommend over gRPC, and the search alone, of a single query and of one in a batch of 64. Their
times are fitted with `a + b log n` and with a power of n. An exact scan grows with n; the question is whether this
grows faster than log n.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.ann.growth_plot import plot_growth
from heliotrope_bench.ann.measurement import MODES, measure
from heliotrope_bench.ann.ours import asked_rows, served_point, stored_rows
from heliotrope_bench.ann.request_growth import REQUEST, measure_requests
from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_indexer.snapshot import SnapshotStore

RECALL = 0.97
MARGIN = 0.1
SEED = 7
"""Of the queries; the build measures with others."""
COLUMNS = {"items": ",", "mode": "", "setting": "", "recall": ".4f", "us": ",.1f", "of_empty": ".0%", "p99_ms": ".2f"}
FIT_COLUMNS = {
    "mode": "",
    "log_a_us": ".1f",
    "log_b_us": ".2f",
    "log_error": ".1%",
    "power": ".3f",
    "power_error": ".1%",
    "ends_over_log": ".2f",
    "over_log": ".2f",
    "verdict": "",
}


class GrowthOptions(BaseSettings):
    """Measures requests and their search on catalogues of growing size."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench growth", cli_kebab_case=True, cli_hide_none_type=True
    )

    sizes: str = Field("10000,30000,100000,300000,1000000", description="items of the catalogues, by commas")
    dimension: Annotated[int, Field(ge=4, description="dimensions of the vectors")] = 64
    queries: Annotated[int, Field(ge=1, description="queries of a pass")] = 400
    rounds: Annotated[int, Field(ge=1, description="timed passes of every size, in turns")] = 7
    duration_s: Annotated[float, Field(gt=0, description="seconds of whole requests, of every size in every turn")] = (
        3.0
    )
    threads: Annotated[int, Field(ge=1)] = Field(os.cpu_count() or 1, description="for building; searches take one")
    work: Path = Field(Path(".bench"), description="where the synthetic snapshots are kept between runs")
    out: Path = Field(Path("growth.json"), description="raw results; the plot lies beside it, as .svg")


def run(options: GrowthOptions, arguments: Sequence[str], console: Console) -> None:
    """Measures every size; raises a BenchError for sizes that can't be or a recall below RECALL."""
    sizes = _sizes(options.sizes)
    results = [row for size in sizes for row in _measured(options, size, console)]
    stores = {size: _store(options, size) for size in sizes}
    results += measure_requests(stores, rounds=options.rounds, duration_s=options.duration_s)
    fits = [fit([row for row in results if row["mode"] == mode]) for mode in (REQUEST, *MODES)]
    write_report(
        options.out,
        command=["bench", "growth", *arguments],
        settings={**options.model_dump(mode="json"), "recall": RECALL},
        results=[*results, *fits],
    )
    plot_growth(results, fits, options.out.with_suffix(".svg"))
    title = f"whole requests, and their search alone; {options.dimension} dimensions, one thread, CPU time"
    print_table(console, title, results, COLUMNS)
    print_table(console, "growth", fits, FIT_COLUMNS)
    console.print(f"{options.out}")
    for row in results:
        if row["mode"] in MODES and row["recall"] < RECALL:
            raise BenchError(f"{row['items']:,} items are served with recall {row['recall']:.4f}, below {RECALL}")


def fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Least squares of the times of one mode over the items; errors are root mean squares of the relative residuals.

    `ends_over_log` is the growth of time / log n from the smallest to the largest size, and `over_log` the largest
    between any two: at most 1 where time grows no faster than log n, and MARGIN is left for noise. The verdict is of
    any two, for a small catalogue is scanned, which may cost more.
    """
    items = np.array([row["items"] for row in rows], dtype=np.float64)
    times = np.array([row["us"] for row in rows], dtype=np.float64)
    logs = np.log2(items)
    slope, start = np.polyfit(logs, times, 1)
    power, scale = np.polyfit(logs, np.log2(times), 1)
    shares = times / logs
    over_log = max(float(shares[place:].max() / shares[place]) for place in range(len(shares)))
    return {
        "mode": rows[0]["mode"],
        "log_a_us": float(start),
        "log_b_us": float(slope),
        "log_error": _error(start + slope * logs, times),
        "power": float(power),
        "power_error": _error(2 ** (scale + power * logs), times),
        "ends_over_log": float(shares[-1] / shares[0]),
        "over_log": over_log,
        "verdict": "no faster than log n" if over_log <= 1.0 + MARGIN else "faster than log n",
    }


def _measured(options: GrowthOptions, size: int, console: Console) -> list[dict[str, Any]]:
    snapshot = SnapshotStore(_store(options, size)).open()
    with threadpoolctl.threadpool_limits(1):
        point = served_point(snapshot)
        queries = asked_rows(snapshot, options.queries, SEED)
        results = measure([point], stored_rows(snapshot), queries, rounds=options.rounds)
    console.print(f"the search of {size:,} items is measured")
    return [{"items": size, **row, "us": 1e6 / row["rate"]} for row in results]


def _store(options: GrowthOptions, size: int) -> Path:
    return synthetic_store(options.work / "synthetic", size, options.dimension, threads=options.threads)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BenchError(f"--sizes {text!r} are not numbers by commas") from error
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] < 100:
        raise BenchError(f"--sizes {text!r} are not two or more growing numbers from 100")
    return sizes


def _error(fitted: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((fitted / times - 1.0) ** 2)))
