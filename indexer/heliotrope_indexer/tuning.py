"""Chooses the parameters of the served formula on held-out events of the training data.

The score is a weighted sum of parts: one per horizon and block of the item vectors, the static bias and the
live popularity. A `Recipe` names the weight of each part in units of that part's standard deviation, which
makes weights comparable between data sets; `scoring` turns a recipe into matrices and parameters. The
search is a staged coordinate descent: each stage tries a few values of one setting and keeps the best by
NDCG@10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.calibration import Calibration, calibrate
from heliotrope_indexer.item_vectors import ItemVectors, population_mean
from heliotrope_indexer.parameters import DEFAULT_GAINS, Gain, LogOddsCurve, Parameters
from heliotrope_indexer.replay import Quality, Replay

DAY_S = 86_400.0
HORIZONS = ("session", "long")

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """One point of the search; the defaults did well on MovieLens ml-latest-small (ratings that come in
    bursts).
    """

    norm_power: float = 0.5
    rating_center: float = 0.0
    """Neutral rating as a fraction of the highest; 0 takes every rating as interest."""
    session_half_life_s: float = 60.0
    long_half_life_s: float = 30 * DAY_S
    session_kappa: float = 1.0
    long_kappa: float = 1.0
    session_weight: float = 1.0
    long_weight: float = 0.3
    session_text_weight: float = 0.4
    long_text_weight: float = 0.2
    bias_weight: float = 0.05
    popularity_weight: float = 0.1
    popularity_half_life_s: float = 30 * DAY_S
    prior_weight: float = 0.5
    """The population prior as a fraction of the mean item vector of all events."""


@dataclass(frozen=True)
class Scoring:
    """What a recipe becomes: everything of the snapshot but the item vectors' values."""

    parameters: Parameters
    text_factor: float
    """The text block of the item vectors is multiplied by this, so that one number per horizon serves
    both blocks.
    """
    scoring_matrices: Matrix
    """(H, d, d)."""
    bias_factor: float
    """b_i = bias_factor * log1p(n_i)."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search (or of the defaults) on the validation part."""

    recipe: Recipe
    scoring: Scoring
    quality: Quality
    calibration: Calibration
    trials: int


class Tuner:
    """Scores recipes on one replay; parts of the score are remembered between trials."""

    def __init__(self, replay: Replay, learn: Callable[[float], ItemVectors], *, highest_rating: float) -> None:
        """`learn(norm_power)` returns item vectors fitted without the held-out events."""
        self._replay = replay
        self._learn = learn
        self._highest_rating = highest_rating
        self._vectors: dict[float, ItemVectors] = {}
        self._parts: dict[tuple[Any, ...], tuple[Matrix, float]] = {}

    def finish(self, recipe: Recipe, *, trials: int = 1) -> Tuned:
        """Calibrates a recipe and turns it into parameters."""
        scores = self._scores(recipe)
        calibration = calibrate(scores, self._replay.target_row, self._replay.seen_pairs())
        return Tuned(recipe, self._scoring(recipe, calibration), self._replay.quality(scores), calibration, trials)

    def quality(self, recipe: Recipe) -> Quality:
        """HR@10 and NDCG@10 of a recipe on the validation part."""
        return self._replay.quality(self._scores(recipe))

    def _scores(self, recipe: Recipe) -> Matrix:
        total = np.zeros((self._replay.users, self._replay.n), dtype=np.float32)
        for weight, part, spread in self._weighted_parts(recipe):
            total += np.float32(weight / spread) * part
        return total

    def _weighted_parts(self, recipe: Recipe) -> Iterator[tuple[float, Matrix, float]]:
        for horizon, name in enumerate(HORIZONS):
            for block, weight in enumerate(_weights(recipe, name)):
                if weight:
                    yield weight, *self._interest_part(recipe, horizon, block)
        if recipe.bias_weight:
            yield recipe.bias_weight, *self._bias_part()
        if recipe.popularity_weight:
            yield recipe.popularity_weight, *self._popularity_part(recipe)

    def _interest_part(self, recipe: Recipe, horizon: int, block: int) -> tuple[Matrix, float]:
        parameters = _unscored(recipe, self._highest_rating)
        key = (
            horizon,
            block,
            recipe.norm_power if block == 0 else None,
            recipe.rating_center,
            recipe.prior_weight,
            parameters.half_lives_s[horizon],
            parameters.kappas[horizon],
        )
        if key not in self._parts:
            learned = self._vectors_of(recipe.norm_power)
            vectors = np.ascontiguousarray(learned.vectors[:, learned.blocks()[block]])
            prior = np.float32(recipe.prior_weight) * population_mean(vectors, learned.counts)
            interest = self._replay.interest(vectors, parameters, prior, horizon)
            self._remember(key, interest @ vectors.T)
        return self._parts[key]

    def _bias_part(self) -> tuple[Matrix, float]:
        if ("bias",) not in self._parts:
            bias = np.log1p(self._vectors_of(0.0).counts).astype(np.float32)
            self._remember(("bias",), bias[None, :])
        return self._parts[("bias",)]

    def _popularity_part(self, recipe: Recipe) -> tuple[Matrix, float]:
        key = ("popularity", recipe.popularity_half_life_s, recipe.rating_center)
        if key not in self._parts:
            counts = self._replay.live_counts(_unscored(recipe, self._highest_rating))
            self._remember(key, np.log1p(counts))
        return self._parts[key]

    def _remember(self, key: tuple[Any, ...], part: Matrix) -> None:
        while len(self._parts) >= 16:
            self._parts.pop(next(iter(self._parts)))
        self._parts[key] = (part, max(float(part.std(dtype=np.float64)), 1e-9))

    def _vectors_of(self, norm_power: float) -> ItemVectors:
        if norm_power not in self._vectors:
            self._vectors[norm_power] = self._learn(norm_power)
        return self._vectors[norm_power]

    def _scoring(self, recipe: Recipe, calibration: Calibration) -> Scoring:
        alphas = np.zeros((len(HORIZONS), 2))
        for horizon, name in enumerate(HORIZONS):
            for block, weight in enumerate(_weights(recipe, name)):
                if weight:
                    alphas[horizon, block] = weight / self._interest_part(recipe, horizon, block)[1]
        alphas *= calibration.slope
        popularity = bias = 0.0
        if recipe.popularity_weight:
            popularity = recipe.popularity_weight / self._popularity_part(recipe)[1] * calibration.slope
        if recipe.bias_weight:
            bias = recipe.bias_weight / self._bias_part()[1] * calibration.slope
        learned = self._vectors_of(recipe.norm_power)
        return scoring(
            recipe,
            alphas,
            learned.collaborative,
            learned.vectors.shape[1],
            bias_factor=bias,
            popularity_weight=popularity,
            intercept=calibration.intercept,
            probability=calibration.curve,
            highest_rating=self._highest_rating,
        )


def scoring(
    recipe: Recipe,
    alphas: NDArray[np.float64],
    collaborative: int,
    dimension: int,
    *,
    bias_factor: float,
    popularity_weight: float,
    intercept: float,
    probability: LogOddsCurve | None = None,
    highest_rating: float,
) -> Scoring:
    """Scoring layer with `A_h = diag(alphas[h, block])`; alphas (H, 2) weigh the collaborative and the text block.

    The ratio of the blocks' total weights moves into the vectors themselves: inner products of stored rows
    then look like inner products with served queries, which is what an index is trained for.
    """
    text_factor = 1.0
    if collaborative and alphas[:, 0].sum() > 0 and alphas[:, 1].sum() > 0:
        text_factor = float(np.sqrt(alphas[:, 1].sum() / alphas[:, 0].sum()))
    matrices = np.zeros((len(HORIZONS), dimension, dimension), dtype=np.float32)
    for horizon in range(len(HORIZONS)):
        diagonal = np.full(dimension, alphas[horizon, 1] / text_factor**2)
        diagonal[:collaborative] = alphas[horizon, 0]
        np.fill_diagonal(matrices[horizon], diagonal)
    parameters = _unscored(recipe, highest_rating).model_copy(
        update={"live_popularity_weight": popularity_weight, "intercept": intercept, "probability": probability}
    )
    return Scoring(parameters, text_factor, matrices, bias_factor)


def recipe_summary(recipe: Recipe) -> dict[str, float]:
    """The settings of a recipe as plain numbers, for the manifest."""
    return {field.name: float(getattr(recipe, field.name)) for field in fields(recipe)}


def _weights(recipe: Recipe, horizon: str) -> tuple[float, float]:
    return getattr(recipe, f"{horizon}_weight"), getattr(recipe, f"{horizon}_text_weight")


def _unscored(recipe: Recipe, highest_rating: float) -> Parameters:
    """The parameters that define profiles; those of the scoring layer are filled in later."""
    center = recipe.rating_center * highest_rating
    # Full gain from a fifth of the scale above the neutral rating on: one star of five, two of ten.
    rating = Gain(weight=5.0 / highest_rating, center=center)
    return Parameters(
        half_lives_s=(recipe.session_half_life_s, recipe.long_half_life_s),
        kappas=(recipe.session_kappa, recipe.long_kappa),
        gains={**DEFAULT_GAINS, "rating": rating},
        popularity_half_life_s=recipe.popularity_half_life_s,
    )
