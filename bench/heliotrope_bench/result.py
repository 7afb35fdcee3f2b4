"""What one model did under one protocol, as a file: raw ranks, so that models of different runs can be paired."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.errors import ResultError
from heliotrope_bench.ranking import TargetRank, metrics
from heliotrope_bench.report import write_report

OURS = "heliotrope"


@dataclass(frozen=True)
class Result:
    """One model under one variant of a protocol on one data set.

    `users`, `above` and `tied` have an entry a target; `above` is None where the target was not in the list.
    `test_runs` counts how often this model was measured on the test part of this split.
    """

    dataset: str
    protocol: str
    variant: str
    model: str
    fingerprint: str
    users: list[int]
    above: list[int | None]
    tied: list[int]
    figures: dict[str, float | None]
    settings: dict[str, Any]
    trials: int
    seconds: float
    test_runs: int = 1

    @property
    def ranks(self) -> list[TargetRank]:
        return [TargetRank(above, tied) for above, tied in zip(self.above, self.tied, strict=True)]

    @property
    def user_array(self) -> NDArray[np.int64]:
        return np.array(self.users, np.int64)


def write_results(folder: Path, results: Sequence[Result], *, command: Sequence[str], settings: dict[str, Any]) -> Path:
    """Writes the variants of one model under one protocol; they replace what an earlier run left."""
    first = results[0]
    path = folder / first.dataset / first.protocol / f"{first.model}.json"
    before = {(one.variant, one.fingerprint): one.test_runs for one in read_results(path)} if path.is_file() else {}
    rows = []
    for result in results:
        runs = before.get((result.variant, result.fingerprint), 0) + 1
        rows.append({**asdict(result), "test_runs": runs, "metrics": metrics(result.ranks, result.user_array)})
    write_report(path, command=command, settings=settings, results=rows)
    return path


def read_results(path: Path) -> list[Result]:
    """The results in one file, or in all files of a folder. Raises ResultError."""
    if path.is_dir():
        return [result for file in sorted(path.rglob("*.json")) for result in read_results(file)]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        return [Result(**{key: value for key, value in row.items() if key != "metrics"}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"cannot read the results in {path}: {error}") from error


def read_conditions(folder: Path) -> dict[str, dict[str, Any]]:
    """Under which conditions each data set was measured last: the report of our own results, or else of any."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.json"), key=lambda path: (path.stem == OURS, path.stat().st_mtime)):
        report = json.loads(path.read_text(encoding="utf-8"))
        found[report["results"][0]["dataset"]] = {
            key: report[key] for key in ("git", "machine", "versions", "settings")
        }
    return found


def comparable(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, Result]]:
    """Results by (data set, protocol, variant), then by model.

    Raises ResultError where two of a group were measured on different splits.
    """
    groups: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in results:
        group = groups.setdefault((result.dataset, result.protocol, result.variant), {})
        for other in group.values():
            if other.fingerprint != result.fingerprint:
                raise ResultError(
                    f"{result.model} and {other.model} were measured on different splits of {result.dataset} "
                    f"({result.protocol}): run `heliotrope bench quality` for both again"
                )
        group[result.model] = result
    return groups
