"""The training job: catalogue, events and model in, one weights folder out.

First the model is trained on what remains when each user's last positive event is held out, and the number of epochs
with the best NDCG@10 on those is kept, with the calibration that belongs to it. Then, unless told otherwise, it is
trained again for as many epochs on all events. After each epoch a checkpoint is written: a job that was stopped goes
on from there when it is started again with the same input.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope_indexer.calibration import Calibration, calibrate
from heliotrope_indexer.degenerate import degenerate
from heliotrope_indexer.embedding_cache import Encoder
from heliotrope_indexer.errors import SettingsError, WeightsError
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.item_vectors import principal_axes
from heliotrope_indexer.job_input import JobInput, JobSources, positive_events, read_input
from heliotrope_indexer.neighbours import HISTORY, WEIGHTS, Neighbours, fit_neighbours
from heliotrope_indexer.parameters import Neighbourhood, Parameters
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.replay import Quality, Replay, event_gains, hold_out
from heliotrope_indexer.training import Learned, Trainer
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_indexer.weights import MANIFEST_FILE, WeightsManifest, publish_weights, read_weights, write_weights

TRAINING_REVISION = 3
"""Raised when the same input would give other weights."""
CHECKPOINT_FILE = "checkpoint.pt"
CURVES_FILE = "curves.csv"
_REPLAY_CELLS = 40_000_000
"""Validation users times items that are scored at once: 160 MB."""
_UNKNOWN_LEVELS = (0.0, -0.5, -1.0, -2.0, -4.0, -8.0)
"""How much lower items without events may be placed than training did, in units of log-odds."""
_UNKNOWN_COST = 0.01
"""Share of NDCG@10 that their place may cost."""
_UNMEASURED_EPOCHS = 5
"""Epochs where nothing can be held out."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on what; see the command line for the meaning of each field."""

    sources: JobSources
    settings: TrainingSettings
    out: Path
    refit: bool = True
    device: str = "cpu"
    threads: int = 2


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training job."""

    manifest: WeightsManifest
    reused: bool
    """Nothing had changed: the folder already held this input."""
    resumed_at: int | None
    """Epochs that a checkpoint saved."""
    rejects: dict[str, int]


@dataclass(frozen=True)
class Judged:
    """What the validation part says of one state of the model."""

    learned: Learned
    unknown_level: float
    """What was added to the scores of items without events."""
    quality: Quality
    scores: NDArray[np.float32]
    """(U, n) as it is to be served."""


@dataclass(frozen=True)
class Validated:
    """The best epoch on the validation part."""

    learned: Learned
    epoch: int
    unknown_level: float
    quality: Quality
    calibration: Calibration


@dataclass(frozen=True)
class Chosen:
    """What the validation part says of neighbours: the weight, and the figures with them."""

    weight: float
    quality: Quality
    calibration: Calibration


class Validation:
    """Events that remain, targets to rank, and the text axes: what settings are compared on."""

    def __init__(self, job: JobInput, positive_rating: float | None, *, seed: int = 0) -> None:
        stars = positive_rating if positive_rating is not None else 0.8 * job.highest_rating
        self.remaining, targets = hold_out(job.events, stars)
        users = max(_REPLAY_CELLS // len(job.items), 50)
        if len(targets) > users:
            drawn = np.random.default_rng(seed).permutation(len(targets))[:users]
            targets = targets.select(np.sort(drawn))
        self.positive = positive_events(self.remaining, stars)
        self.replay = Replay(self.remaining, targets, len(job.items))
        self._counts: dict[float, NDArray[np.float32]] = {}

    @property
    def users(self) -> int:
        """How many targets there are; with none there is nothing to compare on."""
        return self.replay.users

    def scores(self, learned: Learned) -> NDArray[np.float32]:
        """By the served formula (U, n)."""
        arrays, parameters = learned.arrays, learned.parameters
        log_counts = self._log_counts(parameters) if parameters.live_popularity_weight else None
        return self.replay.scores(
            arrays["vectors"], arrays["bias"], arrays["prior"], arrays["matrices"], parameters, log_counts=log_counts
        )

    def judge(self, learned: Learned) -> Judged:
        """Places the items without events and measures.

        A new item should be seen, so such items stand as high as training placed them: as items with events whose
        events are not known. Where most of the catalogue has none because nobody wants it, that would push out what
        people do want, so they stand lower by as little as keeps NDCG@10 within 1 % of the best.
        """
        scores = self.scores(learned)
        unknown = np.flatnonzero(~learned.known)
        levels = _UNKNOWN_LEVELS if len(unknown) else (0.0,)
        as_learned = scores[:, unknown]
        qualities = []
        for level in levels:
            scores[:, unknown] = as_learned + np.float32(level)
            qualities.append(self.replay.quality(scores))
        enough = (1.0 - _UNKNOWN_COST) * max(quality.ndcg_at_10 for quality in qualities)
        place = next(place for place, quality in enumerate(qualities) if quality.ndcg_at_10 >= enough)
        scores[:, unknown] = as_learned + np.float32(levels[place])
        return Judged(learned.with_unknown_items_at(levels[place]), levels[place], qualities[place], scores)

    def with_neighbours(
        self, best: Validated, n: int, ridge: float, progress: Callable[[int], None] = lambda _: None
    ) -> Chosen:
        """The weight of the neighbours that ranks the held-out items best beside what was learned."""
        parameters = best.learned.parameters
        table = fit_neighbours(liked_events(self.remaining, parameters), n, ridge=ridge, progress=progress)
        scores = self.scores(best.learned)
        sums = self.replay.neighbour_sums(table, parameters, HISTORY)
        qualities = [self.replay.quality(scores + np.float32(weight) * sums) for weight in WEIGHTS]
        place = int(np.argmax([quality.ndcg_at_10 for quality in qualities]))
        scores += np.float32(WEIGHTS[place]) * sums
        return Chosen(WEIGHTS[place], qualities[place], self.calibration(scores))

    def calibration(self, scores: NDArray[np.float32]) -> Calibration:
        """What makes probabilities of scores (U, n)."""
        return calibrate(scores, self.replay.target_row, self.replay.seen_pairs())

    def _log_counts(self, parameters: Parameters) -> NDArray[np.float32]:
        half_life = parameters.popularity_half_life_s
        if half_life not in self._counts:
            # One at a time: a table is as large as the scores.
            self._counts = {half_life: np.log1p(self.replay.live_counts(parameters))}
        return self._counts[half_life]


def train(request: TrainingRequest, encoder: Encoder, steps: Steps) -> TrainingResult:
    """Runs the job. Raises an IndexerError; rows that cannot be used are counted, never raised."""
    torch.set_num_threads(request.threads)
    input_hash = request.sources.hash_with(
        encoder, {"revision": TRAINING_REVISION, "refit": request.refit, **request.settings.model_dump(mode="json")}
    )
    current = _reusable(request.out, input_hash)
    if current is not None:
        return TrainingResult(current, True, None, {})
    draft = request.out.with_name(request.out.name + ".training")
    draft.mkdir(parents=True, exist_ok=True)
    job = read_input(request.sources, draft / "rejects.jsonl", encoder, steps)
    if not len(job.events):
        raise SettingsError("there is nothing to train on: not one usable event; `heliotrope build` needs no weights")
    run = _Run(request, job, draft, input_hash, steps)
    validated, epochs = run.validate()
    learned = validated.learned if validated else None
    if learned is None or request.refit:
        learned = run.refit(epochs)
        if validated:
            learned = learned.with_unknown_items_at(validated.unknown_level)
    weight = 0.0
    if validated and request.settings.neighbours:
        weight, validated = run.weigh_neighbours(validated)
    run.write(encoder, learned, validated, epochs, weight)
    publish_weights(draft, request.out)
    return TrainingResult(read_weights(request.out).manifest, False, run.resumed_at, job.rejects)


def liked_events(events: EventTable, parameters: Parameters) -> EventTable:
    """The events that speak for their item."""
    return events.select(event_gains(events, parameters) > 0)


def text_axes(features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Rows (D', D) that map text features onto their leading principal axes, at a root mean square length of 1."""
    axes = principal_axes(features, min(count, features.shape[1]))
    length = float(np.sqrt(np.mean(np.sum((features @ axes.T).astype(np.float64) ** 2, axis=1))))
    scaled: NDArray[np.float32] = (axes / max(length, 1e-6)).astype(np.float32)
    return scaled


def validate(
    trainer: Trainer,
    validation: Validation,
    settings: TrainingSettings,
    *,
    best: Validated | None = None,
    after_epoch: Callable[[int, float, Quality, Validated], None] = lambda *_: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Validated:
    """Trains until the validation part shows no better NDCG@10 for `patience` epochs; returns the best epoch."""
    while best is None or (trainer.epochs < settings.epochs and trainer.epochs - best.epoch < settings.patience):
        loss = one_epoch(trainer, progress)
        judged = validation.judge(trainer.learned())
        if best is None or judged.quality.ndcg_at_10 > best.quality.ndcg_at_10:
            calibration = validation.calibration(judged.scores)
            best = Validated(judged.learned, trainer.epochs, judged.unknown_level, judged.quality, calibration)
        after_epoch(trainer.epochs, loss, judged.quality, best)
    return best


def one_epoch(trainer: Trainer, progress: Callable[[int], None] = lambda _: None) -> float:
    """Trains one epoch; returns the mean loss of a target."""
    total = weight = 0.0
    for windows, loss, part in trainer.train_epoch():
        total, weight = total + loss, weight + part
        progress(windows)
    return total / weight if weight else 0.0


class _Run:
    """One job in the making."""

    def __init__(self, request: TrainingRequest, job: JobInput, draft: Path, input_hash: str, steps: Steps) -> None:
        self._request, self._job, self._draft, self._steps = request, job, draft, steps
        self._input_hash = input_hash
        self._axes = text_axes(job.features, request.settings.text_axes)
        self._text = np.ascontiguousarray(job.features @ self._axes.T)
        self._validation = Validation(job, request.sources.positive_rating, seed=request.settings.seed)
        self._started = time.monotonic()
        self._checkpoint = self._read_checkpoint()
        self.resumed_at = self._checkpoint["total_epochs"] if self._checkpoint else None
        self._curves: list[list[Any]] = self._checkpoint["curves"] if self._checkpoint else []

    def validate(self) -> tuple[Validated | None, int]:
        """The best epoch (None where nothing can be held out), and how many epochs to train on everything."""
        settings = self._request.settings
        validation = self._validation
        if not validation.users:
            return None, min(_UNMEASURED_EPOCHS, settings.epochs)
        kept = self._checkpoint
        if kept and kept["phase"] == "refit":
            return kept["best"], kept["best"].epoch
        trainer = self._trainer(validation.remaining, validation.positive)
        if kept:
            trainer.restore(kept["trainer"])

        def after_epoch(epoch: int, loss: float, quality: Quality, best: Validated) -> None:
            self._keep("validate", trainer, best, loss, quality)

        total = trainer.batches * settings.epochs
        with self._steps.step("train, last positives held out", total) as advance:
            advance(trainer.batches * trainer.epochs)
            best = validate(
                trainer,
                validation,
                settings,
                best=kept["best"] if kept else None,
                after_epoch=after_epoch,
                progress=advance,
            )
        return best, best.epoch

    def refit(self, epochs: int) -> Learned:
        """Trains on all events."""
        trainer = self._trainer(self._job.events, self._job.positive)
        best = None
        if self._checkpoint:
            best = self._checkpoint["best"]
            if self._checkpoint["phase"] == "refit":
                trainer.restore(self._checkpoint["trainer"])
        with self._steps.step("train on all events", trainer.batches * epochs) as advance:
            advance(trainer.batches * trainer.epochs)
            while trainer.epochs < epochs:
                loss = one_epoch(trainer, advance)
                self._keep("refit", trainer, best, loss, None)
        return trainer.learned()

    def weigh_neighbours(self, best: Validated) -> tuple[float, Validated]:
        """The weight of neighbours, and what is reached with them on the validation part."""
        with self._steps.step("weigh neighbours"):
            chosen = self._validation.with_neighbours(
                best, len(self._job.items), self._request.settings.neighbour_ridge
            )
        return chosen.weight, replace(best, quality=chosen.quality, calibration=chosen.calibration)

    def write(
        self, encoder: Encoder, learned: Learned, validated: Validated | None, epochs: int, neighbour_weight: float
    ) -> None:
        """Writes the weights into the draft folder, calibrated."""
        job, settings = self._job, self._request.settings
        calibration = validated.calibration if validated else Calibration(1.0, 0.0, None, float("nan"))
        known = np.flatnonzero(np.bincount(job.events.row, minlength=len(job.items)))
        slope, arrays = np.float32(calibration.slope), learned.arrays
        parameters = learned.parameters.model_copy(
            update={
                "live_popularity_weight": learned.parameters.live_popularity_weight * calibration.slope,
                "intercept": calibration.intercept,
                "probability": calibration.curve,
            }
        )
        neighbours = None
        if neighbour_weight:
            weight = neighbour_weight * calibration.slope
            parameters = parameters.model_copy(update={"neighbours": Neighbourhood(items=HISTORY, weight=weight)})
            neighbours = self._neighbours(parameters, known)
        training: dict[str, Any] = {
            "epochs": epochs,
            "seconds": round(time.monotonic() - self._started, 1),
            "refit": self._request.refit,
            "degenerate": degenerate(job),
        }
        if validated:
            training["validation"] = validation_summary(validated)
            training["unknown_level"] = validated.unknown_level
        with (self._draft / CURVES_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["phase", "epoch", "loss", "hr@10", "ndcg@10", "seconds"])
            writer.writerows(self._curves)
        write_weights(
            self._draft,
            item_ids=[job.items[row].item_id for row in known],
            arrays={
                "feature_mean": job.feature_mean,
                "projection": arrays["projection"] @ self._axes,
                "prior": arrays["prior"],
                "scoring_matrices": arrays["matrices"] * slope,
                "residuals": arrays["residual"][known],
                "biases": arrays["bias"][known] * slope,
            },
            neighbours=neighbours,
            parameters=parameters,
            model_version=encoder.model_version,
            model_variant=encoder.variant,
            settings=settings.model_dump(mode="json"),
            training=training,
            events=len(job.events),
            events_until_time=job.events_until_time,
            input_hash=self._input_hash,
        )
        (self._draft / CHECKPOINT_FILE).unlink(missing_ok=True)

    def _neighbours(self, parameters: Parameters, known: NDArray[np.int64]) -> Neighbours:
        """Those of the `known` items (m,), among them, from the events that the weights were learned from."""
        events, n = self._job.events if self._request.refit else self._validation.remaining, len(self._job.items)
        with self._steps.step("learn neighbours", len(known)) as advance:
            table = fit_neighbours(
                liked_events(events, parameters), n, ridge=self._request.settings.neighbour_ridge, progress=advance
            )
        row_of = np.full(n, -1)
        row_of[known] = np.arange(len(known))
        return table.renumbered(known, row_of)

    def _trainer(self, events: Any, positive: NDArray[np.bool_]) -> Trainer:
        return Trainer(
            events,
            self._text,
            positive,
            self._request.settings,
            highest_rating=self._job.highest_rating,
            device=self._request.device,
        )

    def _keep(self, phase: str, trainer: Trainer, best: Validated | None, loss: float, quality: Quality | None) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        figures = [round(quality.hit_rate_at_10, 5), round(quality.ndcg_at_10, 5)] if quality else ["", ""]
        self._curves.append([phase, trainer.epochs, round(loss, 5), *figures, seconds])
        self._checkpoint = {
            "input_hash": self._input_hash,
            "phase": phase,
            "trainer": trainer.state(),
            "best": best,
            "curves": self._curves,
            "total_epochs": len(self._curves),
        }
        path = self._draft / CHECKPOINT_FILE
        torch.save(self._checkpoint, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self._draft / CHECKPOINT_FILE
        if not path.is_file():
            return None
        # Written by this job into its own folder; it holds our own classes beside tensors.
        checkpoint: dict[str, Any] = torch.load(path, weights_only=False, map_location=self._request.device)
        return checkpoint if checkpoint["input_hash"] == self._input_hash else None


def validation_summary(validated: Validated) -> dict[str, Any]:
    """The figures of a validated epoch, for manifests."""
    return {
        "users": validated.quality.users,
        "hr@10": round(validated.quality.hit_rate_at_10, 4),
        "ndcg@10": round(validated.quality.ndcg_at_10, 4),
        "log_loss": round(validated.calibration.log_loss, 4),
        "epoch": validated.epoch,
    }


def _reusable(folder: Path, input_hash: str) -> WeightsManifest | None:
    if not (folder / MANIFEST_FILE).is_file():
        if folder.exists() and any(folder.iterdir()):
            raise SettingsError(f"{folder} holds other files than weights; name a new folder")
        return None
    try:
        manifest = read_weights(folder).manifest
    except WeightsError:
        # Damaged or of another format: that is what training again is for.
        return None
    return manifest if manifest.input_hash == input_hash else None
