"""What a competitor is, how it is tuned on validation and measured."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.holdout import Holdout
from heliotrope_bench.ranking import CUT_OFF, MEASURES, TargetRank, rank_in_scores, values

Scores = Iterator[NDArray[np.floating]]
Settings = dict[str, Any]

TRIALS = 8
"""Settings that are tried on the validation part, for every competitor alike (fewer where there are no more)."""

_OBJECTIVE = list(MEASURES).index(f"ndcg@{CUT_OFF}")


@dataclass(frozen=True)
class Competitor:
    """A scorer and the settings to choose from. `score` yields (items,) for each target, in order.

    It may learn from the train events of a holdout and from `histories`; the causal ones from the events recorded
    before each target.
    """

    name: str
    score: Callable[..., Scores]
    settings: tuple[Settings, ...]
    tuner: Callable[[Holdout, tuple[Settings, ...]], Settings] | None = None
    """Chooses among the settings where trying each in full would take too long."""


@dataclass(frozen=True)
class Outcome:
    """What a model did with T targets: their ranks, its ten best unseen items (T, 10), and how it got there.

    A place of `top` that a list does not fill is -1.
    """

    ranks: list[TargetRank]
    top: NDArray[np.int64]
    settings: Settings
    trials: int
    seconds: float


def drawn_settings(seed: int, **choices: Sequence[Any]) -> tuple[Settings, ...]:
    """TRIALS settings drawn from the grid of all `choices`, without repetition."""
    grid = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return tuple(grid[place] for place in np.random.default_rng(seed).permutation(len(grid))[:TRIALS])


def tune(competitor: Competitor, validation: Holdout) -> Settings:
    """The settings with the best NDCG@10 on the validation targets; ties go to the first."""
    if len(competitor.settings) == 1 or not len(validation.targets):
        return competitor.settings[0]
    if competitor.tuner:
        return competitor.tuner(validation, competitor.settings)
    found = [mean_ndcg(competitor.score(validation, **choice), validation) for choice in competitor.settings]
    return competitor.settings[int(np.argmax(found))]


def evaluate(competitor: Competitor, holdout: Holdout, settings: Settings) -> Outcome:
    """Scores the targets of a holdout once."""
    started = time.perf_counter()
    generator = np.random.default_rng(0)
    found, top = [], np.full((len(holdout.targets), CUT_OFF), -1)
    for place, (row, seen, target) in enumerate(_rows(competitor.score(holdout, **settings), holdout)):
        found.append(rank_in_scores(row, target, seen))
        best = best_of(row, seen, generator)
        top[place, : len(best)] = best
    return Outcome(found, top, settings, len(competitor.settings), time.perf_counter() - started)


def ranks(scores: Scores, holdout: Holdout) -> list[TargetRank]:
    """The rank of each target under a scorer, seen items left out."""
    return [rank_in_scores(row, target, seen) for row, seen, target in _rows(scores, holdout)]


def mean_ndcg(scores: Scores, holdout: Holdout) -> float:
    """What is tuned for: NDCG@10 over the targets."""
    return float(values(ranks(scores, holdout))[:, _OBJECTIVE].mean())


def best_of(scores: NDArray[np.floating], seen: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """The ten best unseen items in any order; which of equal ones is left to chance."""
    candidates = np.array(scores, np.float64)
    candidates[seen] = -np.inf
    count = min(CUT_OFF, int(np.isfinite(candidates).sum()))
    if not count:
        return np.empty(0, np.int64)
    bar = np.partition(candidates, -count)[-count]
    above, tied = np.flatnonzero(candidates > bar), np.flatnonzero(candidates == bar)
    drawn = tied if len(above) + len(tied) == count else generator.permutation(tied)[: count - len(above)]
    return np.concatenate([above, drawn])


def _rows(scores: Scores, holdout: Holdout) -> Iterator[tuple[NDArray[np.floating], NDArray[np.int64], int]]:
    item = holdout.dataset.item
    for row, target, history in zip(scores, holdout.targets.tolist(), holdout.histories(), strict=True):
        yield row, item[history], int(item[target])


def described(settings: Mapping[str, Any]) -> str:
    """Settings as `name value, name value`."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
