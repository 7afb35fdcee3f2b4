"""Results of one group as rows: metrics with intervals, and how far Heliotrope is from each other model."""

from collections.abc import Mapping
from typing import Any

from heliotrope_bench.interval import Bootstrap, verdict
from heliotrope_bench.ranking import CUT_OFF, MEASURES, metrics, values
from heliotrope_bench.result import OURS, Result

HR, NDCG = f"hr@{CUT_OFF}", f"ndcg@{CUT_OFF}"
COLUMNS = {
    "model": "",
    HR: ".4f",
    NDCG: ".4f",
    "mrr": ".4f",
    "recall@100": ".4f",
    f"{HR} difference": "",
    f"{NDCG} difference": "",
    "verdict": "",
    "targets": "d",
    "seconds": ".1f",
}


def rows_of(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row for each model, ours first, then by falling NDCG@10.

    `HR difference` and `NDCG difference` are ours minus theirs with the 95 % interval of the paired bootstrap over
    users; `verdict` joins the two words.
    """
    rows = [_row(result, results.get(OURS)) for result in results.values()]
    return sorted(rows, key=lambda row: (not row["model"].startswith(OURS), -row[NDCG], row["model"]))


def _row(result: Result, ours: Result | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": result.model,
        **metrics(result.ranks, result.user_array),
        **result.figures,
        "settings": result.settings,
        "trials": result.trials,
        "seconds": result.seconds,
        "test_runs": result.test_runs,
    }
    if ours is None or ours is result:
        return row
    mean, low, high = Bootstrap(ours.user_array).difference(values(ours.ranks), values(result.ranks))
    words = []
    for column, name in enumerate(MEASURES):
        row[f"{name} difference"] = f"{mean[column]:+.4f} ({low[column]:+.4f}, {high[column]:+.4f})"
        if name in (HR, NDCG):
            words.append(verdict(low[column], high[column]))
    row["verdict"] = words[0] if words[0] == words[1] else " / ".join(words)
    return row
