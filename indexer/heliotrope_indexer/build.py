"""The rebuild job: catalogue, events and model in, one published snapshot out.

Stages: read -> embed (cached) -> tune or take the defaults (on held-out events) -> learn -> index ->
publish. Every stage before the publishing leaves nothing in the store but scratch that the next build
removes, and the embedding cache, which makes a repeated build short.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.ann_index import EXACT_UP_TO, MeasuredIndex, build_index, served_queries
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue import read_catalogue
from heliotrope_indexer.embedding_cache import EmbeddingCache, Encoder
from heliotrope_indexer.errors import SettingsError, SnapshotError, StoreBusyError
from heliotrope_indexer.events import EventTable, read_events
from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.item_vectors import ItemVectors, learn_item_vectors, population_mean
from heliotrope_indexer.manifest import DataSummary, Manifest, file_sha256
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.replay import Replay, hold_out
from heliotrope_indexer.snapshot import SnapshotStore, write_snapshot
from heliotrope_indexer.source import Source
from heliotrope_indexer.tuning import HORIZONS, STAGES, Recipe, Scoring, Tuned, Tuner, recipe_summary, scoring

BUILD_REVISION = 2
"""Raised when the same input would make another snapshot."""
_REPLAY_CELLS = 10_000_000
"""Validation users times items that one replay may score at once: 40 MB a part."""
_POPULAR_EVENTS = 1_000
"""Recent events with which an item may pass as many others, where nothing can be measured."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build from what; see the command line for the meaning of each field."""

    catalogue: Source
    events: tuple[Source, ...]
    store: SnapshotStore
    scratch: Path
    """A folder for files in the making, on the file system of a local store."""
    cache: Path
    collaborative_dimension: int = 128
    text_dimension: int = 63
    tune: bool = False
    exact_index: bool = False
    positive_rating: float | None = None
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class BuildResult:
    """What came of a build."""

    version: str
    manifest: Manifest
    reused: bool
    """Nothing had changed: CURRENT already held this input."""
    newly_embedded: int
    rejects: str | None
    """Where the rejected rows are; None when there are none (or nothing was built)."""


def build(request: BuildRequest, encoder: Encoder, steps: Steps) -> BuildResult:
    """Runs the job. Raises an IndexerError; rows that cannot be used are rejected, never raised."""
    input_hash = hash_of_input(request, encoder)
    current = _reusable(request.store, input_hash)
    if current is not None:
        return BuildResult(current.version, current, True, 0, None)
    with _alone(request.scratch):
        shutil.rmtree(request.scratch, ignore_errors=True)
        request.scratch.mkdir(parents=True)
        try:
            return _build(request, encoder, steps, input_hash)
        finally:
            shutil.rmtree(request.scratch, ignore_errors=True)


def hash_of_input(request: BuildRequest, encoder: Encoder) -> str:
    """SHA-256 of everything that decides the content of the snapshot."""
    sources = [request.catalogue, *request.events]
    for source in sources:
        if not source.path.is_file():
            raise SettingsError(f"there is no file {source.path}")
    content = {
        "revision": [BUILD_REVISION, recipe_summary(Recipe()), STAGES],
        "model": [encoder.model_version, encoder.variant],
        "sources": [[file_sha256(s.path), s.path.suffixes, dict(s.columns), s.delimiter] for s in sources],
        "settings": [
            request.collaborative_dimension,
            request.text_dimension,
            request.tune,
            request.exact_index,
            request.positive_rating,
            request.seed,
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(request: BuildRequest, encoder: Encoder, steps: Steps, input_hash: str) -> BuildResult:
    rejected = request.scratch / "rejects.jsonl"
    with RejectLog(rejected) as rejects:
        with steps.step("read the catalogue"):
            items = read_catalogue(request.catalogue, rejects)
        with steps.step("read the events"):
            rows = {item.item_id: row for row, item in enumerate(items)}
            events = read_events(request.events, rows, rejects)
        counts = rejects.counts
    pooled, newly, truncated = _embed(request, items, encoder, steps)
    mean = feature_mean(pooled)
    text = features(pooled, mean)
    tuned = _validate(request, text, events, steps) if len(events) else None
    recipe = tuned.recipe if tuned else Recipe()
    with steps.step("learn item vectors"):
        learned = _learn(request, text, events, recipe.norm_power)
        plan = tuned.scoring if tuned else _untuned_scoring(learned, _highest_rating(events))
        learned = learned.scaled(1.0, plan.text_factor)
        bias = (plan.bias_factor * np.log1p(learned.counts)).astype(np.float32)
        prior = np.float32(recipe.prior_weight) * population_mean(learned.vectors, learned.counts)
    index = _index(request, learned, bias, prior, plan, steps)
    parameters = plan.parameters.model_copy(update={"search": index.search if index else None})
    quality: dict[str, Any] = (
        index.summary() if index else {"index": "exact", "recall_at_10": 1.0, "recall_at_100": 1.0}
    )
    quality["truncated_texts"] = truncated
    if tuned:
        quality["validation"] = _validation_summary(tuned, request.tune)
    with steps.step("publish"):
        data = DataSummary(
            catalogue_rows=request.catalogue.rows_read,
            event_rows=sum(source.rows_read for source in request.events),
            events_until_time=_iso(float(events.time[-1])) if len(events) else None,
            rejects=counts,
            input_hash=input_hash,
        )
        folder = request.scratch / "snapshot"
        manifest = write_snapshot(
            folder,
            items=items,
            vectors=learned.vectors,
            bias=bias,
            projection=learned.projection,
            feature_mean=mean,
            prior=prior,
            scoring_matrices=plan.scoring_matrices,
            parameters=parameters,
            index=index.index if index else None,
            data=data,
            quality=quality,
            model_version=encoder.model_version,
            model_variant=encoder.variant,
        )
        where = request.store.keep_rejects(manifest.version, rejected) if counts else None
        version = request.store.publish(folder)
    return BuildResult(version, manifest, False, newly, where)


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Holds the lock of a scratch folder; the system lets go of it when the process dies, however it dies."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.with_name(scratch.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusyError(f"another build is running in {scratch.parent}; wait for it to end") from error
        yield


def _reusable(store: SnapshotStore, input_hash: str) -> Manifest | None:
    try:
        manifest = store.manifest(store.current())
        if manifest.data.input_hash != input_hash:
            return None
        store.open(manifest.version)
    except SnapshotError:
        # Missing or damaged: that is what a build is for.
        return None
    return manifest


def _embed(
    request: BuildRequest, items: list[CatalogItem], encoder: Encoder, steps: Steps
) -> tuple[NDArray[np.float32], int, int]:
    with EmbeddingCache(request.cache) as cache, steps.step("embed texts", len(items)) as advance:
        return cache.embed([item.text for item in items], encoder, progress=advance)


def _learn(request: BuildRequest, text: NDArray[np.float32], events: EventTable, norm_power: float) -> ItemVectors:
    has_events = len(events) > 0
    whole = request.collaborative_dimension + request.text_dimension
    # Without events the text has all dimensions to itself.
    return learn_item_vectors(
        text,
        events,
        collaborative=request.collaborative_dimension if has_events else 0,
        text=min(request.text_dimension if has_events else whole, text.shape[1]),
        norm_power=norm_power,
        seed=request.seed,
        threads=request.threads,
    )


def _validate(request: BuildRequest, text: NDArray[np.float32], events: EventTable, steps: Steps) -> Tuned | None:
    """Tunes on, or at least measures and calibrates with, each user's last positive event; None without
    any.
    """
    highest = _highest_rating(events)
    positive = request.positive_rating if request.positive_rating is not None else 0.8 * highest
    remaining, targets = hold_out(events, positive)
    if not len(targets):
        return None
    users = max(_REPLAY_CELLS // len(text), 50)
    if len(targets) > users:
        drawn = np.random.default_rng(request.seed).permutation(len(targets))[:users]
        targets = targets.select(np.sort(drawn))
    replay = Replay(remaining, targets, len(text))
    tuner = Tuner(replay, _learner(request, text, remaining), highest_rating=highest)
    if not request.tune:
        with steps.step("measure on held-out events"):
            return tuner.finish(Recipe())
    with steps.step("tune on held-out events", sum(len(values) for _, values in STAGES)) as advance:
        return tuner.search(Recipe(), progress=advance)


def _learner(request: BuildRequest, text: NDArray[np.float32], events: EventTable) -> Callable[[float], ItemVectors]:
    return lambda norm_power: _learn(request, text, events, norm_power)


def _untuned_scoring(learned: ItemVectors, highest_rating: float) -> Scoring:
    """The scoring layer where there is nothing to measure on: plain weights, and live popularity in proportion.

    An item with 1,000 recent events gains what lies between the first and the 1,000th item of a user of scattered
    taste, whose scores lie closest together. Were one event worth more than such a gap, every touched item would pass
    every liked one, and no list of candidates would hold them all.
    """
    alphas = np.zeros((len(HORIZONS), 2))
    alphas[0] = (4.0, 4.0)
    alphas[1] = (2.0, 2.0)

    def scored(popularity_weight: float) -> Scoring:
        return scoring(
            Recipe(session_half_life_s=3_600.0, popularity_half_life_s=14 * 86_400.0),
            alphas,
            learned.collaborative,
            learned.vectors.shape[1],
            bias_factor=0.1 if learned.counts.any() else 0.0,
            popularity_weight=popularity_weight,
            intercept=-1.0,
            highest_rating=highest_rating,
        )

    plain = scored(0.0)
    nowhere = np.zeros(learned.vectors.shape[1], dtype=np.float32)
    queries = served_queries(learned.vectors, plain.scoring_matrices, nowhere, plain.parameters.kappas, count=20)
    scores = -np.sort(-(queries @ learned.vectors.T), axis=1)
    gap = float(np.quantile(scores[:, 0] - scores[:, min(_POPULAR_EVENTS, scores.shape[1]) - 1], 0.1))
    return scored(gap / math.log1p(_POPULAR_EVENTS))


def _highest_rating(events: EventTable) -> float:
    ratings = events.value[events.kind == EVENT_TYPES.index("rating")]
    return float(ratings.max()) if len(ratings) and ratings.max() > 0 else 5.0


def _index(
    request: BuildRequest,
    learned: ItemVectors,
    bias: NDArray[np.float32],
    prior: NDArray[np.float32],
    plan: Scoring,
    steps: Steps,
) -> MeasuredIndex | None:
    if request.exact_index or len(learned.vectors) <= EXACT_UP_TO:
        return None
    queries = served_queries(
        learned.vectors, plan.scoring_matrices, prior, plan.parameters.kappas, weights=learned.counts
    )
    with steps.step("build and measure the index", 9) as advance:
        return build_index(learned.vectors, bias, queries, threads=request.threads, progress=advance)


def _validation_summary(tuned: Tuned, searched: bool) -> dict[str, Any]:
    return {
        "users": tuned.quality.users,
        "hr@10": round(tuned.quality.hit_rate_at_10, 4),
        "ndcg@10": round(tuned.quality.ndcg_at_10, 4),
        "tuned": searched,
        "trials": tuned.trials,
        "log_loss": round(tuned.calibration.log_loss, 4),
        "recipe": recipe_summary(tuned.recipe),
    }


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")
