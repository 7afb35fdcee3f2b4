"""Times points in turns, so that a machine whose speed drifts drifts for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.ann.contender import Found, K, Point, Rows
from heliotrope_bench.ann.frontier import recall

BATCH = 64
"""As many questions as the server takes at once."""
MODES = ("single", "batch")
WORTH = 0.6


def measure(points: Sequence[Point], rows: Rows, queries: Rows, *, rounds: int) -> list[dict[str, Any]]:
    """A result per point and mode: recall@10, and the rates of each round and their median.

    The first pass of each is not timed: it warms up and gives the recall. What the first round leaves under WORTH of
    its contender's own frontier is not timed again. A rate is queries per second of CPU time of
    this process: all work of a query counts, whichever thread does it, and other programs do not. `wall_rate` is by
    the clock.
    """
    scores = queries @ rows.T
    results: list[dict[str, Any]] = []
    passes: list[Callable[[], Found]] = []
    for point in points:
        for mode in MODES:
            work = _pass(point, mode, queries)
            found = work()
            results.append(
                {
                    "contender": point.contender,
                    "setting": point.setting,
                    "mode": mode,
                    "recall": recall(scores, found, K),
                }
                | {"rates": [], "wall_rates": []}
            )
            passes.append(work)
    timed = list(range(len(passes)))
    for turn in range(rounds):
        # Another order in every round: nobody always runs after the same neighbour.
        for place in np.random.default_rng(turn).permutation(timed):
            wall, cpu = time.perf_counter(), time.process_time()
            passes[place]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            results[place]["rates"].append(len(queries) / cpu)
            results[place]["wall_rates"].append(len(queries) / wall)
        if turn == 0:
            timed = [place for place in timed if _worth_timing(results[place], results)]
    for result in results:
        result["rate"] = statistics.median(result["rates"])
        result["wall_rate"] = statistics.median(result["wall_rates"])
    return results


def _worth_timing(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> bool:
    best = max(
        other["rates"][0]
        for other in results
        if (other["contender"], other["mode"]) == (result["contender"], result["mode"])
        and other["recall"] >= result["recall"]
    )
    return bool(result["rates"][0] >= WORTH * best)


def _pass(point: Point, mode: str, queries: Rows) -> Callable[[], NDArray[np.int64]]:
    if mode == "single":
        asked = list(queries)
        return lambda: np.stack([point.single(query) for query in asked])
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    return lambda: np.concatenate([point.batch(batch) for batch in batches])
