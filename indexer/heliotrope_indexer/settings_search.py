"""Searches what gradients do not reach: the settings of a training run, by NDCG@10 on held-out events.

Optuna proposes settings (tree-structured Parzen estimator) and stops a trial that, at the same epoch, is behind most
of those before it (Li et al., 2018: asynchronous successive halving). The live popularity's half-life, which matters
most where taste follows the news, starts where live popularity alone ranks best, but no longer than by default: what
is liked for years is in the biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from heliotrope_indexer.job_input import JobInput
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.replay import Quality
from heliotrope_indexer.training import Trainer
from heliotrope_indexer.training_job import Validation, one_epoch, text_axes
from heliotrope_indexer.training_settings import DAY_S, TrainingSettings

POPULARITY_HALF_LIVES_S = tuple(days * DAY_S for days in (0.25, 0.5, 1, 2, 4, 7, 14, 30, 90, 365))
SEARCHED = (
    "popularity_half_life_s",
    "other_weight",
    "rating_center",
    "residual_dropout",
    "dimension",
    "l2",
    "residual_l2",
    "learning_rate",
)
FIRST_EPOCHS = 3
"""Epochs before a trial can be stopped."""
REDUCTION = 3
"""One in this many trials goes on at each rung: after 3, 9, 27 epochs."""


@dataclass(frozen=True)
class Searched:
    """The outcome."""

    settings: TrainingSettings
    quality: Quality
    trials: int
    table: list[dict[str, Any]]
    """One row a trial: its settings, epochs, hr@10 and ndcg@10."""


def search(
    job: JobInput,
    validation: Validation,
    start: TrainingSettings,
    *,
    trials: int,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> Searched:
    """The best of `trials` settings, the first of which is `start` but for the half-life of live popularity."""
    half_life_s = min(best_popularity_half_life_s(validation), start.popularity_half_life_s)
    start = start.model_copy(update={"popularity_half_life_s": half_life_s})
    found: list[tuple[TrainingSettings, Quality, int]] = []
    text = np.ascontiguousarray(job.features @ text_axes(job.features, start.text_axes).T)

    def objective(trial: optuna.Trial) -> float:
        settings = _proposed(trial, start)
        trainer = Trainer(
            validation.remaining,
            text,
            validation.positive,
            settings,
            highest_rating=job.highest_rating,
            device=device,
        )
        best, best_epoch = Quality(0, 0.0, -1.0), 0
        while trainer.epochs < settings.epochs and trainer.epochs - best_epoch < settings.patience:
            one_epoch(trainer)
            quality = validation.judge(trainer.learned()).quality
            if quality.ndcg_at_10 > best.ndcg_at_10:
                best, best_epoch = quality, trainer.epochs
            trial.report(best.ndcg_at_10, trainer.epochs)
            if trial.should_prune():
                break
        found.append((settings, best, trainer.epochs))
        progress(1)
        return best.ndcg_at_10

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=start.seed, n_startup_trials=max(trials // 2, 1)),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_EPOCHS, reduction_factor=REDUCTION),
    )
    study.enqueue_trial(
        dict(_place_of(start)) | {"l2": max(start.l2, 1e-4), "residual_l2": max(start.residual_l2, 1e-3)}
    )
    study.optimize(objective, n_trials=trials, catch=())
    settings, quality, _ = max(found, key=lambda each: each[1].ndcg_at_10)
    table = [
        {**_place_of(each), "epochs": epochs, "hr@10": reached.hit_rate_at_10, "ndcg@10": reached.ndcg_at_10}
        for each, reached, epochs in found
    ]
    return Searched(settings, quality, len(found), table)


def best_popularity_half_life_s(validation: Validation) -> float:
    """The half-life with which the live count alone ranks the held-out items best."""
    ranked = []
    for half_life_s in POPULARITY_HALF_LIVES_S:
        parameters = Parameters(half_lives_s=(1.0,), kappas=(1.0,), popularity_half_life_s=half_life_s)
        ranked.append(validation.replay.quality(validation.replay.live_counts(parameters)).ndcg_at_10)
    return POPULARITY_HALF_LIVES_S[int(np.argmax(ranked))]


def _proposed(trial: optuna.Trial, start: TrainingSettings) -> TrainingSettings:
    """Settings around those to start from, which are always among the choices."""
    near = int(np.searchsorted(POPULARITY_HALF_LIVES_S, start.popularity_half_life_s))
    rate, l2, residual_l2 = start.learning_rate, max(start.l2, 1e-4), max(start.residual_l2, 1e-3)
    choices: dict[str, tuple[float | int, ...]] = {
        "popularity_half_life_s": POPULARITY_HALF_LIVES_S[max(near - 2, 0) : near + 3],
        "other_weight": (0.1, 0.3, 1.0),
        "rating_center": (0.0, 0.5),
        "residual_dropout": (0.1, 0.3),
        "dimension": (32, 64),
    }
    found: dict[str, float | int] = {}
    for name, usual in choices.items():
        found[name] = trial.suggest_categorical(name, sorted({*usual, getattr(start, name)}))
    found["l2"] = trial.suggest_float("l2", l2 / 10.0, min(l2 * 10.0, 10.0), log=True)
    found["residual_l2"] = trial.suggest_float("residual_l2", residual_l2 / 5.0, min(residual_l2 * 5.0, 10.0), log=True)
    found["learning_rate"] = trial.suggest_float("learning_rate", rate / 2.5, min(rate * 2.0, 1.0), log=True)
    return start.model_copy(update=found)


def _place_of(settings: TrainingSettings) -> dict[str, float | int]:
    place: dict[str, float | int] = settings.model_dump(include=set(SEARCHED))
    return place
