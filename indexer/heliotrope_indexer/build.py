"""The rebuild job: catalogue, events and model in, one published snapshot out.

Stages: read -> embed (cached) -> take the trained weights, or learn item vectors with plain ones -> index -> gates ->
publish. Every stage before the publishing leaves nothing in the store but scratch that the next build
removes, and the embedding cache, which makes a repeated build short.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from heliotrope_indexer.ann_index import EXACT_INSTEAD_UP_TO, EXACT_UP_TO, MeasuredIndex, build_index, served_queries
from heliotrope_indexer.degenerate import degenerate
from heliotrope_indexer.embedding_cache import Encoder
from heliotrope_indexer.errors import GatesShutError, IndexQualityError, SnapshotError, WeightsError
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.features import features
from heliotrope_indexer.gate_figures import REPLAY_CELLS, Figures, Served, compare, fresh_recall, some_targets
from heliotrope_indexer.gates import GateLimits, Verdict, judge
from heliotrope_indexer.item_vectors import ItemVectors, item_counts, learn_item_vectors, population_mean
from heliotrope_indexer.job_folder import alone
from heliotrope_indexer.job_input import JobInput, JobSources, read_input
from heliotrope_indexer.manifest import DataSummary, Manifest
from heliotrope_indexer.memory import BuildSize, check_memory, plan_memory
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.replay import Replay, hold_out
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore, write_snapshot
from heliotrope_indexer.tuning import HORIZONS, Recipe, Scoring, Tuned, Tuner, recipe_summary, scoring
from heliotrope_indexer.weights import Weights, read_weights
from heliotrope_indexer.young_items import YoungFit, fit_young_items

logger = logging.getLogger(__name__)

BUILD_REVISION = 10
"""Raised when the same input would make another snapshot."""
_POPULAR_EVENTS = 1_000
"""Recent events with which an item may pass as many others, where nothing can be measured."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build from what; see the command line for the meaning of each field."""

    sources: JobSources
    store: SnapshotStore
    scratch: Path
    """A folder for files in the making, on the file system of a local store."""
    weights: Path | None = None
    """A weights folder; None: item vectors by ALS and text, and a plain scoring layer."""
    collaborative_dimension: int = 128
    text_dimension: int = 63
    exact_index: bool = False
    seed: int = 0
    threads: int = 2
    """Of every library that computes: BLAS, OpenMP, FAISS, Arrow; the encoder brings its own."""
    max_memory: int | None = None
    """Bytes that the job may hold; None: no limit."""
    gates: GateLimits = field(default_factory=GateLimits)
    publish_anyway: bool = False
    """Publish although a gate is shut; the verdict says so."""


@dataclass(frozen=True)
class _Plan:
    """What is served, for n items and d dimensions."""

    vectors: NDArray[np.float32]
    bias: NDArray[np.float32]
    projection: NDArray[np.float32]
    feature_mean: NDArray[np.float32]
    prior: NDArray[np.float32]
    scoring_matrices: NDArray[np.float32]
    parameters: Parameters
    counts: NDArray[np.float64]
    """(n,) events of each item, negative types left out."""
    learned_from: NDArray[np.float64]
    """(n,) the events that each item's residual was learned from; 0 for an item that stands on its text."""
    learned_until_s: float
    """Unix time of the newest event that the vectors were learned from."""
    validation: dict[str, Any] | None
    neighbours: Neighbours | None = None


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
    verdict: Verdict | None = None
    """What the gates said; None when nothing was built."""


def build(request: BuildRequest, encoder: Encoder, steps: Steps) -> BuildResult:
    """Runs the job. Raises an IndexerError; rows that cannot be used are rejected, never raised."""
    weights = None if request.weights is None else _fitting_weights(request.weights, encoder)
    input_hash = hash_of_input(request, encoder, weights)
    current = _reusable(request.store, input_hash)
    if current is not None:
        return BuildResult(current.version, current, True, 0, None)
    with alone(request.scratch):
        shutil.rmtree(request.scratch, ignore_errors=True)
        request.scratch.mkdir(parents=True)
        arrow_threads = pa.cpu_count()
        pa.set_cpu_count(request.threads)
        try:
            with threadpool_limits(request.threads):
                return _build(request, encoder, steps, input_hash, weights)
        finally:
            pa.set_cpu_count(arrow_threads)
            shutil.rmtree(request.scratch, ignore_errors=True)


def hash_of_input(request: BuildRequest, encoder: Encoder, weights: Weights | None = None) -> str:
    """SHA-256 of everything that decides the content of the snapshot."""
    settings: dict[str, Any] = {
        "revision": [BUILD_REVISION, recipe_summary(Recipe())],
        "weights": weights.version if weights else None,
        "dimensions": [request.collaborative_dimension, request.text_dimension],
        "exact_index": request.exact_index,
        "seed": request.seed,
    }
    if request.max_memory is not None:
        # It may leave room for fewer users to measure on.
        settings["max_memory"] = request.max_memory
    return request.sources.hash_with(encoder, settings)


def _build(
    request: BuildRequest, encoder: Encoder, steps: Steps, input_hash: str, weights: Weights | None
) -> BuildResult:
    rejected = request.scratch / "rejects.jsonl"
    memory = plan_memory(_size(request, encoder, weights), request.max_memory) if request.max_memory else None
    replay_cells = memory.replay_cells if memory else REPLAY_CELLS
    job = read_input(request.sources, rejected, encoder, steps)
    check_memory(request.max_memory, "embed texts")
    plan = _trained_plan(job, weights) if weights else _plain_plan(request, job, steps, replay_cells)
    check_memory(request.max_memory, "learn item vectors")
    index = _index(request, plan, steps)
    check_memory(request.max_memory, "build and measure the index")
    young = _young(request, job, plan, steps) if len(job.events) else None
    parameters = plan.parameters.model_copy(
        update={
            "search": index.search if index else None,
            "young": young.parameters.model_copy(update={"learned_until_s": plan.learned_until_s}) if young else None,
        }
    )
    quality: dict[str, Any] = (
        index.summary() if index else {"index": "exact", "recall_at_10": 1.0, "recall_at_100": 1.0}
    )
    quality["truncated_texts"] = job.truncated
    quality["degenerate"] = degenerate(job)
    if young:
        quality["young_items"] = young.gain
    if plan.validation:
        quality["validation"] = plan.validation
    data = DataSummary(
        catalogue_rows=job.catalogue_rows,
        event_rows=sum(source.rows_read for source in request.sources.events),
        events_until_time=job.events_until_time,
        rejects=job.rejects,
        input_hash=input_hash,
        weights=weights.version if weights else None,
        absorbed=request.sources.delta.absorbed if request.sources.delta else None,
    )
    with steps.step("check the gates"):
        verdict = _verdict(request, job, plan, parameters, index, data, replay_cells)
    quality["gates"] = verdict.model_dump(mode="json")
    if verdict.failures and not verdict.overridden:
        evidence = {"quality": quality, "data": data.model_dump(mode="json"), "model_version": encoder.model_version}
        figures = request.scratch / "figures.json"
        figures.write_text(json.dumps(evidence, indent=2) + "\n", encoding="utf-8")
        kept = request.store.keep_evidence(figures, rejected if job.rejects else None)
        raise GatesShutError(
            f"nothing is published: {'; '.join(verdict.failures)}; the figures are in {kept}; "
            "publish all the same with --publish-anyway"
        )
    with steps.step("publish"):
        folder = request.scratch / "snapshot"
        manifest = write_snapshot(
            folder,
            items=job.items,
            vectors=plan.vectors,
            bias=plan.bias,
            projection=plan.projection,
            feature_mean=plan.feature_mean,
            prior=plan.prior,
            scoring_matrices=plan.scoring_matrices,
            event_counts=plan.learned_from,
            query_mean=young.query_mean if young else None,
            neighbours=plan.neighbours,
            parameters=parameters,
            index=index.index if index else None,
            data=data,
            quality=quality,
            model_version=encoder.model_version,
            model_variant=encoder.variant,
        )
        where = request.store.keep_rejects(manifest.version, rejected) if job.rejects else None
        version = request.store.publish(folder)
    return BuildResult(version, manifest, False, job.newly_embedded, where, verdict)


def _size(request: BuildRequest, encoder: Encoder, weights: Weights | None) -> BuildSize:
    items, catalogue_bytes, events = request.sources.size()
    plain = min(request.collaborative_dimension + request.text_dimension, encoder.dimension)
    return BuildSize(
        items=items,
        catalogue_bytes=catalogue_bytes,
        events=events,
        feature_dimension=encoder.dimension,
        dimension=len(weights.projection) if weights else plain,
        indexed=not request.exact_index and items > EXACT_UP_TO,
    )


def _verdict(
    request: BuildRequest,
    job: JobInput,
    plan: _Plan,
    parameters: Parameters,
    index: MeasuredIndex | None,
    data: DataSummary,
    replay_cells: int,
) -> Verdict:
    """Holds what would be published against the limits, and against what is current."""
    draft = Served(
        [item.item_id for item in job.items],
        plan.vectors,
        plan.bias,
        plan.prior,
        plan.scoring_matrices,
        parameters,
        plan.neighbours,
        data.weights,
    )
    stars = request.sources.positive_rating
    current = _current(request.store)
    compared = None
    if current is not None:
        compared = compare(
            draft,
            current,
            job.events,
            data.event_rows,
            plan.validation,
            positive_rating=stars if stars is not None else 0.8 * job.highest_rating,
            seed=request.seed,
            replay_cells=replay_cells,
        )
    figures = Figures(*fresh_recall(index, draft, plan.counts), compared)
    return judge(figures, request.gates, override=request.publish_anyway)


def _current(store: SnapshotStore) -> Snapshot | None:
    try:
        return store.open(verify=False)
    except SnapshotError:
        # Missing or damaged: there is nothing to compare with.
        return None


def _fitting_weights(folder: Path, encoder: Encoder) -> Weights:
    """Raises WeightsError for weights that were trained with another model."""
    weights = read_weights(folder)
    trained = (weights.manifest.model_version, weights.manifest.model_variant)
    if trained != (encoder.model_version, encoder.variant):
        raise WeightsError(
            f"{folder} was trained with model {' '.join(trained)}, this is {encoder.model_version} {encoder.variant}; "
            "train again with this model"
        )
    return weights


def _trained_plan(job: JobInput, weights: Weights) -> _Plan:
    """The trained weights, laid over the present catalogue."""
    text = features(job.pooled, weights.feature_mean)
    item_ids = [item.item_id for item in job.items]
    vectors, bias = weights.item_vectors(item_ids, text)
    counts = item_counts(job.events, len(job.items))
    trained = set(weights.item_ids)
    return _Plan(
        vectors=vectors,
        bias=bias,
        projection=weights.projection,
        feature_mean=weights.feature_mean,
        prior=weights.prior,
        scoring_matrices=weights.scoring_matrices,
        parameters=weights.manifest.parameters,
        counts=counts,
        # Events that came after training have taught nothing yet: such an item still moves with its live users.
        learned_from=counts * np.array([item_id in trained for item_id in item_ids], dtype=np.float64),
        learned_until_s=_unix_time(weights.manifest.events_until_time),
        validation=weights.manifest.training.get("validation"),
        neighbours=weights.item_neighbours(item_ids),
    )


def _plain_plan(request: BuildRequest, job: JobInput, steps: Steps, replay_cells: int) -> _Plan:
    """Item vectors by ALS and text with plain weights, measured and calibrated on held-out events if there are any."""
    recipe = Recipe()
    measured = _measure(request, job, steps, replay_cells) if len(job.events) else None
    with steps.step("learn item vectors"):
        learned = _learn(request, job.features, job.events, recipe.norm_power)
        chosen = measured.scoring if measured else _unmeasured_scoring(learned, job.highest_rating)
        learned = learned.scaled(1.0, chosen.text_factor)
    return _Plan(
        vectors=learned.vectors,
        bias=(chosen.bias_factor * np.log1p(learned.counts)).astype(np.float32),
        projection=learned.projection,
        feature_mean=job.feature_mean,
        prior=np.float32(recipe.prior_weight) * population_mean(learned.vectors, learned.counts),
        scoring_matrices=chosen.scoring_matrices,
        parameters=chosen.parameters,
        counts=learned.counts,
        learned_from=learned.counts,
        learned_until_s=_unix_time(job.events_until_time),
        validation=_validation_summary(measured) if measured else None,
    )


def _unix_time(iso: str | None) -> float:
    """The end of that second: manifests name whole ones."""
    return 0.0 if iso is None else datetime.fromisoformat(iso).timestamp() + 1.0


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


def _measure(request: BuildRequest, job: JobInput, steps: Steps, replay_cells: int) -> Tuned | None:
    """Measures and calibrates the defaults on each user's last positive event; None without any."""
    stars = request.sources.positive_rating
    remaining, targets = hold_out(job.events, stars if stars is not None else 0.8 * job.highest_rating)
    if not len(targets):
        return None
    n = len(job.items)
    targets = some_targets(targets, n, replay_cells, request.seed)
    tuner = Tuner(
        Replay(remaining, targets, n), _learner(request, job.features, remaining), highest_rating=job.highest_rating
    )
    with steps.step("measure on held-out events"):
        return tuner.finish(Recipe())


def _learner(request: BuildRequest, text: NDArray[np.float32], events: EventTable) -> Callable[[float], ItemVectors]:
    return lambda norm_power: _learn(request, text, events, norm_power)


def _unmeasured_scoring(learned: ItemVectors, highest_rating: float) -> Scoring:
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


def _index(request: BuildRequest, plan: _Plan, steps: Steps) -> MeasuredIndex | None:
    if request.exact_index or len(plan.vectors) <= EXACT_UP_TO:
        return None
    queries = served_queries(
        plan.vectors, plan.scoring_matrices, plan.prior, plan.parameters.kappas, weights=plan.counts
    )
    with steps.step("build and measure the index", 9) as advance:
        try:
            return build_index(plan.vectors, plan.bias, queries, threads=request.threads, progress=advance)
        except IndexQualityError as error:
            if len(plan.vectors) > EXACT_INSTEAD_UP_TO:
                raise
            logger.warning("the catalogue is small enough to be searched exactly: %s", error)
            return None


def _young(request: BuildRequest, job: JobInput, plan: _Plan, steps: Steps) -> YoungFit | None:
    text = features(job.pooled, plan.feature_mean)
    with steps.step("fit young items"):
        return fit_young_items(
            plan.vectors,
            text @ plan.projection.T,
            plan.bias,
            plan.prior,
            plan.scoring_matrices,
            plan.parameters,
            job.events,
            seed=request.seed,
        )


def _validation_summary(tuned: Tuned) -> dict[str, Any]:
    return {
        "users": tuned.quality.users,
        "hr@10": round(tuned.quality.hit_rate_at_10, 4),
        "ndcg@10": round(tuned.quality.ndcg_at_10, 4),
        "log_loss": round(tuned.calibration.log_loss, 4),
    }
